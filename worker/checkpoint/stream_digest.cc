#include "worker/checkpoint/stream_digest.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/support/status_macros.h"

namespace qst {
namespace {

// How many whole pieces may wait for the thread.
constexpr std::size_t kMaxWaiting = 4;

// Both halves of a product, so that a change of any bit spreads to all, and in another way for every chain: changes of
// several words do not undo each other.
std::uint64_t Mix(std::uint64_t chain, std::uint64_t word) {
  // The fraction of the square root of 3: odd, and without a pattern.
  const unsigned __int128 product = static_cast<unsigned __int128>(chain ^ word) * 0xbb67ae8584caa73bu;
  return static_cast<std::uint64_t>(product) ^ static_cast<std::uint64_t>(product >> 64);
}

}  // namespace

std::uint64_t PieceSum(const void* data, std::size_t num_bytes) {
  // Eight chains, so that products need not wait for each other.
  constexpr std::size_t kChains = 8;
  constexpr std::size_t kWordBytes = sizeof(std::uint64_t);
  std::array<std::uint64_t, kChains> chains;
  for (std::size_t k = 0; k < kChains; ++k) chains[k] = Mix(num_bytes, k);
  const char* bytes = static_cast<const char*>(data);
  std::array<std::uint64_t, kChains> words;
  std::size_t left = num_bytes;
  for (; left >= sizeof(words); left -= sizeof(words), bytes += sizeof(words)) {
    std::memcpy(words.data(), bytes, sizeof(words));
    for (std::size_t k = 0; k < kChains; ++k) chains[k] = Mix(chains[k], words[k]);
  }
  words.fill(0);
  if (left > 0) std::memcpy(words.data(), bytes, left);
  for (std::size_t k = 0; k * kWordBytes < left; ++k) chains[k] = Mix(chains[k], words[k]);
  std::uint64_t sum = 0;
  for (const std::uint64_t chain : chains) sum = Mix(sum, chain);
  return sum;
}

StreamDigest::~StreamDigest() {
  if (!thread_.joinable()) return;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    is_over_ = true;
    waiting_.clear();
  }
  changed_.notify_all();
  thread_.join();
}

void StreamDigest::Update(const void* data, std::size_t num_bytes) {
  const std::uint8_t* bytes = static_cast<const std::uint8_t*>(data);
  while (num_bytes > 0) {
    // Only once more comes: a stream of just one piece stays here.
    if (gathered_.size() == kDigestPieceBytes) HandOver();
    const std::size_t count = std::min(num_bytes, kDigestPieceBytes - gathered_.size());
    gathered_.insert(gathered_.end(), bytes, bytes + count);
    bytes += count;
    num_bytes -= count;
  }
}

void StreamDigest::HandOver() {
  if (!thread_.joinable()) thread_ = std::thread([this] { Run(); });
  {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return waiting_.size() < kMaxWaiting; });
    waiting_.push_back(std::move(gathered_));
    gathered_ = Piece();
    if (!free_.empty()) {
      gathered_ = std::move(free_.back());
      free_.pop_back();
    }
  }
  changed_.notify_all();
  gathered_.reserve(kDigestPieceBytes);
}

void StreamDigest::Run() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (true) {
    changed_.wait(lock, [&] { return is_over_ || !waiting_.empty(); });
    if (waiting_.empty()) return;
    Piece piece = std::move(waiting_.front());
    waiting_.pop_front();
    lock.unlock();
    changed_.notify_all();
    AddPiece(piece);
    piece.clear();
    lock.lock();
    free_.push_back(std::move(piece));
  }
}

void StreamDigest::AddPiece(const Piece& piece) {
  sha256_.Update(piece.data(), piece.size());
  digest_.piece_sums.push_back(PieceSum(piece.data(), piece.size()));
  digest_.num_bytes += piece.size();
}

FileDigest StreamDigest::Finish() {
  if (thread_.joinable()) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      is_over_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }
  if (!gathered_.empty()) AddPiece(gathered_);
  digest_.sha256 = sha256_.HexDigest();
  return std::move(digest_);
}

absl::Status CheckPieces(const MappedFile& file, const FileDigest& written, ThreadPool& threads) {
  if (file.size() != written.num_bytes) {
    return absl::DataLossError(
        absl::StrCat(file.path(), ": ", file.size(), " bytes are there, ", written.num_bytes, " were written"));
  }
  const std::int64_t num_pieces = static_cast<std::int64_t>(written.piece_sums.size());
  std::mutex mutex;
  std::int64_t first_bad = num_pieces;
  threads.ParallelFor(num_pieces, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t piece = begin; piece < end; ++piece) {
      const std::uint64_t offset = static_cast<std::uint64_t>(piece) * kDigestPieceBytes;
      const std::uint64_t length = std::min<std::uint64_t>(kDigestPieceBytes, file.size() - offset);
      const bool is_equal =
          PieceSum(file.data() + offset, length) == written.piece_sums[static_cast<std::size_t>(piece)];
      file.DontNeed(offset, length);  // so that checking a large file does not take its size in memory
      if (is_equal) continue;
      std::lock_guard<std::mutex> lock(mutex);
      first_bad = std::min(first_bad, piece);
    }
  });
  if (first_bad == num_pieces) return absl::OkStatus();
  const std::uint64_t offset = static_cast<std::uint64_t>(first_bad) * kDigestPieceBytes;
  return absl::DataLossError(absl::StrCat(file.path(), ": what can be read is not what was written, first in bytes ",
                                          offset, " to ",
                                          std::min<std::uint64_t>(offset + kDigestPieceBytes, file.size()),
                                          ": check memory and disk of this machine, then try again"));
}

}  // namespace qst
