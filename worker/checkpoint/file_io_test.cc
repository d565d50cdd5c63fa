#include "worker/checkpoint/file_io.h"

#include <filesystem>
#include <memory>
#include <string>

#include "gtest/gtest.h"
#include "proto/support/status_matchers.h"
#include "worker/checkpoint/test_files.h"

namespace qst {
namespace {

using testing::HasSubstr;

TEST(MappedFileTest, ShowsTheBytesOfTheFile) {
  TempFolder folder;
  const std::string path = folder.Write("a", "hello");
  const auto file = MappedFile::Open(path);
  QST_ASSERT_OK(file);
  EXPECT_EQ(std::string(reinterpret_cast<const char*>((*file)->data()), (*file)->size()), "hello");
}

TEST(MappedFileTest, HintsNeverChangeWhatIsRead) {
  TempFolder folder;
  const std::string contents(100'000, 'x');
  const auto file = MappedFile::Open(folder.Write("a", contents));
  QST_ASSERT_OK(file);
  (*file)->WillNeed(0, contents.size());
  (*file)->WillNeed(50'000, ~std::uint64_t{0});
  (*file)->DontNeed(1, contents.size() - 1);
  (*file)->DontNeed(200'000, 1);
  EXPECT_EQ(std::string(reinterpret_cast<const char*>((*file)->data()), (*file)->size()), contents);
}

TEST(MappedFileTest, AnEmptyFileHasSizeZero) {
  TempFolder folder;
  const auto file = MappedFile::Open(folder.Write("a", ""));
  QST_ASSERT_OK(file);
  EXPECT_EQ((*file)->size(), 0u);
}

TEST(MappedFileTest, NamesAMissingFileAndAFolder) {
  TempFolder folder;
  EXPECT_THAT(MappedFile::Open(folder.Path("none")), StatusIs(absl::StatusCode::kNotFound, HasSubstr("none")));
  EXPECT_THAT(MappedFile::Open(folder.path()),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("not a regular file")));
}

TEST(AtomicFileTest, AppearsOnlyAfterCommit) {
  TempFolder folder;
  const std::string path = folder.Path("a");
  auto file = AtomicFile::Create(path);
  QST_ASSERT_OK(file);
  const std::string large(3 << 20, 'y');
  QST_ASSERT_OK((*file)->Append("ab", 2));
  QST_ASSERT_OK((*file)->Append(large.data(), large.size()));
  QST_ASSERT_OK((*file)->Append("c", 1));
  EXPECT_FALSE(std::filesystem::exists(path));
  QST_ASSERT_OK((*file)->Commit());
  EXPECT_EQ(ReadFile(path), "ab" + large + "c");
  EXPECT_FALSE(std::filesystem::exists(path + ".tmp"));
}

TEST(AtomicFileTest, WithoutCommitLeavesTheOldFileAndNoOther) {
  TempFolder folder;
  const std::string path = folder.Write("a", "old");
  {
    auto file = AtomicFile::Create(path);
    QST_ASSERT_OK(file);
    QST_ASSERT_OK((*file)->Append("new", 3));
  }
  EXPECT_EQ(ReadFile(path), "old");
  EXPECT_FALSE(std::filesystem::exists(path + ".tmp"));
}

TEST(AtomicFileTest, NamesAFolderThatIsNotThere) {
  TempFolder folder;
  EXPECT_THAT(WriteFileAtomically(folder.Path("none/a"), "x"),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("none/a")));
}

TEST(ReadSmallFileTest, RefusesAFileOverTheLimit) {
  TempFolder folder;
  const std::string path = folder.Write("a", "12345");
  const auto contents = ReadSmallFile(path, 5);
  QST_ASSERT_OK(contents);
  EXPECT_EQ(*contents, "12345");
  EXPECT_THAT(ReadSmallFile(path, 4),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("5 bytes, at most 4 expected")));
}

TEST(FreeDiskBytesTest, KnowsTheDiskOfAFolderAndMissesNone) {
  TempFolder folder;
  const auto free_bytes = FreeDiskBytes(folder.path());
  QST_ASSERT_OK(free_bytes);
  EXPECT_GT(*free_bytes, 0u);
  EXPECT_THAT(FreeDiskBytes(folder.Path("none")), StatusIs(absl::StatusCode::kNotFound));
}

TEST(FreeDiskBytesTest, TooLittleSpaceIsReportedWithBothNumbers) {
  TempFolder folder;
  QST_EXPECT_OK(CheckFreeDisk(folder.path(), 1));
  EXPECT_THAT(CheckFreeDisk(folder.path(), std::uint64_t{1} << 62),
              StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("needed are 4398046511104 MiB")));
}

TEST(Sha256Test, GivesThePublishedDigestOfAbc) {
  Sha256 sha256;
  sha256.Update("a", 1);
  sha256.Update("bc", 2);
  EXPECT_EQ(sha256.HexDigest(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

}  // namespace
}  // namespace qst
