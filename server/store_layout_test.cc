#include "server/store_layout.h"

#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/support/status_matchers.h"

namespace qst {
namespace {

namespace fs = std::filesystem;

class StoreLayoutTest : public testing::Test {
 protected:
  void SetUp() override { fs::create_directories(folder_); }
  void TearDown() override { fs::remove_all(folder_); }
  void Write(const std::string& path, const std::string& content) {
    fs::create_directories(fs::path(path).parent_path());
    std::ofstream(path) << content;
  }
  static std::string Read(const std::string& path) {
    std::ifstream file(path);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  const std::string folder_ = CanonicalPath(testing::TempDir()) + "/layout-" + RandomHex(12);
};

TEST_F(StoreLayoutTest, OpenMakesTheFolderResolvesLinksAndRemovesHalfUploads) {
  Write(folder_ + "/real/datasets/.upload-123", "half");
  Write(folder_ + "/real/datasets/aa/data.csv", "whole");
  fs::create_directory_symlink(folder_ + "/real", folder_ + "/link");
  const auto layout = StoreLayout::Open(folder_ + "/link");
  ASSERT_TRUE(layout.ok()) << layout.status();
  EXPECT_EQ(layout->root(), folder_ + "/real");
  EXPECT_TRUE(fs::is_directory(layout->root() + "/models"));
  EXPECT_FALSE(fs::exists(layout->root() + "/datasets/.upload-123"));
  EXPECT_TRUE(fs::exists(layout->DatasetPath("aa", "data.csv")));
  EXPECT_THAT(StoreLayout::Open(""), StatusIs(absl::StatusCode::kInvalidArgument));
  Write(folder_ + "/file", "");
  EXPECT_FALSE(StoreLayout::Open(folder_ + "/file").ok());
}

TEST_F(StoreLayoutTest, FileNamesLoseTheirFolderAndWhatIsNotPlain) {
  EXPECT_EQ(SanitizeFileName("train.jsonl"), "train.jsonl");
  EXPECT_EQ(SanitizeFileName("/etc/passwd"), "passwd");
  EXPECT_EQ(SanitizeFileName("..\\..\\x.csv"), "x.csv");
  EXPECT_EQ(SanitizeFileName("a b\n.tsv"), "a_b_.tsv");
  EXPECT_EQ(SanitizeFileName("../.."), "data");
  EXPECT_EQ(SanitizeFileName(".hidden"), "hidden");
  EXPECT_EQ(SanitizeFileName(""), "data");
  const std::string long_name = SanitizeFileName(std::string(500, 'x') + ".jsonl");
  EXPECT_EQ(long_name.size(), 128u);
  EXPECT_THAT(long_name, testing::EndsWith(".jsonl"));
}

TEST_F(StoreLayoutTest, AFolderTakesThePlaceOfAnother) {
  Write(folder_ + "/m/new/file", "new");
  QST_ASSERT_OK(ReplaceFolder(folder_ + "/m/new", folder_ + "/m/x"));
  EXPECT_EQ(Read(folder_ + "/m/x/file"), "new");
  Write(folder_ + "/m/newer/file", "newer");
  QST_ASSERT_OK(ReplaceFolder(folder_ + "/m/newer", folder_ + "/m/x"));
  EXPECT_EQ(Read(folder_ + "/m/x/file"), "newer");
  EXPECT_EQ(std::distance(fs::directory_iterator(folder_ + "/m"), {}), 1);
  // What is there stays if the new one is not.
  EXPECT_THAT(ReplaceFolder(folder_ + "/m/none", folder_ + "/m/x"), StatusIs(absl::StatusCode::kNotFound));
  EXPECT_EQ(Read(folder_ + "/m/x/file"), "newer");
}

TEST_F(StoreLayoutTest, FilesAreListedByPathAndLinksAreNotFollowed) {
  Write(folder_ + "/results/b", "22");
  Write(folder_ + "/results/a/c", "1");
  Write(folder_ + "/secret", "s");
  fs::create_symlink(folder_ + "/secret", folder_ + "/results/link");
  const auto files = ListFiles(folder_ + "/results");
  ASSERT_TRUE(files.ok()) << files.status();
  ASSERT_EQ(files->size(), 2u);
  EXPECT_EQ((*files)[0].path, "a/c");
  EXPECT_EQ((*files)[1].path, "b");
  EXPECT_EQ((*files)[1].size_bytes, 2u);
  EXPECT_TRUE(ListFiles(folder_ + "/none")->empty());
}

TEST_F(StoreLayoutTest, OnlyStaleModelFoldersAreRemoved) {
  const auto layout = StoreLayout::Open(folder_ + "/store");
  ASSERT_TRUE(layout.ok());
  const std::string models = layout->root() + "/models";
  for (const char* name : {"/m", "/.import-m-1", "/.import-m-2", "/.import-m-2.tmp", "/.old-3"}) {
    Write(models + name + "/file", "x");
  }
  RemoveStaleModelFolders(*layout, {"", models + "/.import-m-2"});
  EXPECT_TRUE(fs::exists(models + "/m"));
  EXPECT_FALSE(fs::exists(models + "/.import-m-1"));
  EXPECT_TRUE(fs::exists(models + "/.import-m-2"));
  EXPECT_TRUE(fs::exists(models + "/.import-m-2.tmp"));
  EXPECT_FALSE(fs::exists(models + "/.old-3"));
}

}  // namespace
}  // namespace qst
