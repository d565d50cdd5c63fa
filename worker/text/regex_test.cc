#include "worker/text/regex.h"

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/support/status_matchers.h"

namespace qst {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

// "0-3": the bytes [0, 3).
std::vector<std::string> Found(const std::string& pattern, const std::string& text) {
  const auto regex = Regex::Compile(pattern);
  QST_EXPECT_OK(regex);
  const auto matches = regex->FindAll(text);
  QST_EXPECT_OK(matches);
  std::vector<std::string> found;
  if (!matches.ok()) return found;
  for (const TextRange& range : *matches) found.push_back(absl::StrCat(range.begin, "-", range.end));
  return found;
}

TEST(RegexTest, MatchesFollowEachOther) {
  EXPECT_THAT(Found("a+|(?<=b)c", "aacbcaa"), ElementsAre("0-2", "4-5", "5-7"));
  EXPECT_THAT(Found("x*", "ax\xC3\xA9"), ElementsAre("0-0", "1-2", "2-2", "4-4"));
}

// Two nested loops over the run: more than a place has at first, and what comes after is found as ever.
TEST(RegexTest, PlacesThatNeedManyStepsGetThem) {
  EXPECT_THAT(Found("x*x*y|(?<=a)b|^c", absl::StrCat(std::string(60, 'x'), "ab\ncc")), ElementsAre("61-62", "63-64"));
  const size_t n = 300000;
  EXPECT_THAT(Found(R"(\s*[\r\n]+|\s+(?!\S)|\s+)", absl::StrCat(std::string(n, ' '), "a")),
              ElementsAre(absl::StrCat("0-", n - 1), absl::StrCat(n - 1, "-", n)));
}

// Each place stays below any limit of its own; all together would take minutes.
TEST(RegexTest, BacktrackingIsLimitedInAll) {
  const auto regex = Regex::Compile(".{0,300}.{0,300}.{0,300}[xy]");
  QST_ASSERT_OK(regex);
  EXPECT_THAT(regex->FindAll(std::string(1000, 'a')),
              StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("failed on a text of 1000 bytes")));
}

TEST(RegexTest, WhatDependsOnWhereASearchBeganIsRefused) {
  EXPECT_THAT(Regex::Compile(R"(\Ga)"), StatusIs(absl::StatusCode::kUnimplemented, HasSubstr("\\G")));
}

}  // namespace
}  // namespace qst
