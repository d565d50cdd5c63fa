#include "worker/checkpoint/stream_digest.h"

#include <cstdint>
#include <memory>
#include <random>
#include <set>
#include <string>

#include "gtest/gtest.h"
#include "kernels/device.h"
#include "proto/support/status_matchers.h"
#include "worker/checkpoint/file_io.h"
#include "worker/checkpoint/test_files.h"

namespace qst {
namespace {

using testing::HasSubstr;

std::string RandomBytes(std::size_t n, int seed) {
  std::mt19937_64 random(static_cast<std::uint64_t>(seed));
  std::string bytes(n, '\0');
  for (char& byte : bytes) byte = static_cast<char>(random());
  return bytes;
}

FileDigest DigestOf(const std::string& bytes, std::size_t step) {
  StreamDigest digest;
  for (std::size_t i = 0; i < bytes.size(); i += step)
    digest.Update(bytes.data() + i, std::min(step, bytes.size() - i));
  return digest.Finish();
}

TEST(StreamDigestTest, TheDigestIsThatOfTheBytesInWhateverPieces) {
  for (const std::size_t n : {std::size_t{0}, std::size_t{1}, std::size_t{1000}, kDigestPieceBytes - 1,
                              kDigestPieceBytes, kDigestPieceBytes + 1, 9 * kDigestPieceBytes, 12345678ul}) {
    const std::string bytes = RandomBytes(n, 1);
    Sha256 sha256;
    sha256.Update(bytes.data(), bytes.size());
    const std::string expected = sha256.HexDigest();
    for (const std::size_t step : {std::size_t{4097}, kDigestPieceBytes, std::size_t{1} << 24}) {
      const FileDigest digest = DigestOf(bytes, step);
      EXPECT_EQ(digest.sha256, expected) << n << " " << step;
      EXPECT_EQ(digest.num_bytes, n);
      ASSERT_EQ(digest.piece_sums.size(), (n + kDigestPieceBytes - 1) / kDigestPieceBytes);
      for (std::size_t i = 0; i < digest.piece_sums.size(); ++i) {
        const std::size_t begin = i * kDigestPieceBytes;
        EXPECT_EQ(digest.piece_sums[i], PieceSum(bytes.data() + begin, std::min(kDigestPieceBytes, n - begin)));
      }
    }
  }
}

TEST(StreamDigestTest, AStreamThatIsGivenUpEndsItsThread) {
  const std::string bytes = RandomBytes(3 * kDigestPieceBytes, 2);
  for (int round = 0; round < 20; ++round) {
    StreamDigest digest;
    digest.Update(bytes.data(), bytes.size());
  }
}

TEST(StreamDigestTest, EveryBitAndTheLengthChangeAPiecesSum) {
  for (const std::size_t n : {1, 8, 63, 64, 65, 200}) {
    std::string bytes = RandomBytes(n, 3);
    std::set<std::uint64_t> sums = {PieceSum(bytes.data(), n)};
    for (std::size_t bit = 0; bit < 8 * n; ++bit) {
      bytes[bit / 8] = static_cast<char>(bytes[bit / 8] ^ (1 << bit % 8));
      sums.insert(PieceSum(bytes.data(), n));
      bytes[bit / 8] = static_cast<char>(bytes[bit / 8] ^ (1 << bit % 8));
    }
    sums.insert(PieceSum((bytes + '\0').data(), n + 1));
    EXPECT_EQ(sums.size(), 8 * n + 2) << n;
  }
  // Two flips of the same bit, as of a line of memory that is stuck, in any two places.
  for (int bit = 0; bit < 8; ++bit) {
    std::string bytes = RandomBytes(256, 4);
    std::set<std::uint64_t> sums = {PieceSum(bytes.data(), bytes.size())};
    std::size_t expected = 1;
    for (std::size_t a = 0; a < bytes.size(); ++a) {
      for (std::size_t b = 0; b < a; ++b, ++expected) {
        std::string changed = bytes;
        for (const std::size_t i : {a, b}) changed[i] = static_cast<char>(changed[i] ^ (1 << bit));
        sums.insert(PieceSum(changed.data(), changed.size()));
      }
    }
    EXPECT_EQ(sums.size(), expected);
  }
  const std::string swapped = "abcdefghABCDEFGH", original = "ABCDEFGHabcdefgh";
  EXPECT_NE(PieceSum(swapped.data(), 16), PieceSum(original.data(), 16));
}

TEST(CheckPiecesTest, WhatDiffersFromWhatWasWrittenIsFound) {
  TempFolder folder;
  std::string bytes = RandomBytes(3 * kDigestPieceBytes + 1234, 5);
  const FileDigest digest = DigestOf(bytes, 100000);
  const auto check = [&](const std::string& stored, int num_threads) {
    folder.Write("file", stored);
    const std::unique_ptr<MappedFile> file = MappedFile::Open(folder.Path("file")).value();
    ThreadPool threads(num_threads);
    return CheckPieces(*file, digest, threads);
  };
  const auto kDataLoss = absl::StatusCode::kDataLoss;
  for (const int num_threads : {1, 3}) {
    QST_EXPECT_OK(check(bytes, num_threads));
    EXPECT_THAT(check(bytes.substr(1), num_threads),
                StatusIs(kDataLoss, HasSubstr("3146961 bytes are there, 3146962")));
    EXPECT_THAT(check(bytes + '\0', num_threads), StatusIs(kDataLoss, HasSubstr("were written")));
    for (const std::size_t at : {std::size_t{0}, kDigestPieceBytes + 7, bytes.size() - 1}) {
      std::string changed = bytes;
      changed[at] = static_cast<char>(changed[at] ^ 1);
      changed.back() = static_cast<char>(changed.back() ^ 64);
      const std::string first = std::to_string(at / kDigestPieceBytes * kDigestPieceBytes);
      EXPECT_THAT(check(changed, num_threads), StatusIs(kDataLoss, HasSubstr("first in bytes " + first + " to")));
    }
  }
}

}  // namespace
}  // namespace qst
