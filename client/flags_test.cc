#include "client/flags.h"

#include "client/errors.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/support/status_matchers.h"

namespace qst {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::vector<FlagSpec> Table() {
  return {
      {"output", 'o', FlagKind::kString, "DIR", ".", "where to write"},
      {"watch", 'w', FlagKind::kBool, "", "", "follow"},
      {"workers", 0, FlagKind::kUint, "N", "3", "processes"},
      {"temperature", 0, FlagKind::kDouble, "T", "", "of sampling"},
      {"timeout", 0, FlagKind::kDuration, "TIME", "30s", "for one call"},
      {"set", 0, FlagKind::kList, "KEY=VALUE", "", "one field"},
  };
}

TEST(FlagsTest, DefaultsHoldUntilGiven) {
  const auto args = ParseFlags(Table(), {});
  QST_ASSERT_OK(args);
  EXPECT_EQ(args->String("output"), ".");
  EXPECT_FALSE(args->Bool("watch"));
  EXPECT_EQ(args->Uint("workers"), 3u);
  EXPECT_EQ(args->Double("temperature"), 0.0);
  EXPECT_EQ(args->Duration("timeout"), absl::Seconds(30));
  EXPECT_TRUE(args->List("set").empty());
  EXPECT_FALSE(args->Has("workers"));
}

TEST(FlagsTest, EveryFormOfAFlagIsRead) {
  const auto args = ParseFlags(Table(), {"a", "--output=x=y", "--workers", "4", "-w", "--set", "a=1", "b", "--set=b=2",
                                         "--timeout=2m", "--temperature", "-0.5", "--", "--watch"});
  QST_ASSERT_OK(args);
  EXPECT_EQ(args->String("output"), "x=y");
  EXPECT_EQ(args->Uint("workers"), 4u);
  EXPECT_TRUE(args->Has("workers"));
  EXPECT_TRUE(args->Bool("watch"));
  EXPECT_EQ(args->Double("temperature"), -0.5);
  EXPECT_EQ(args->Duration("timeout"), absl::Minutes(2));
  EXPECT_THAT(args->List("set"), ElementsAre("a=1", "b=2"));
  EXPECT_THAT(args->positional, ElementsAre("a", "b", "--watch"));
}

TEST(FlagsTest, ShortFlagTakesItsValueAttachedOrApart) {
  EXPECT_EQ(ParseFlags(Table(), {"-o", "d"})->String("output"), "d");
  EXPECT_EQ(ParseFlags(Table(), {"-od"})->String("output"), "d");
  EXPECT_FALSE(ParseFlags(Table(), {"--watch=false"})->Bool("watch"));
  EXPECT_EQ(ParseFlags(Table(), {"--timeout=1.5"})->Duration("timeout"), absl::Milliseconds(1500));
}

TEST(FlagsTest, ALoneDashIsPositional) { EXPECT_THAT(ParseFlags(Table(), {"-"})->positional, ElementsAre("-")); }

TEST(FlagsTest, WrongFlagsAreUsageErrorsThatNameThem) {
  struct Case {
    std::vector<std::string> args;
    const char* message;
  };
  const Case cases[] = {
      {{"--wokers=3"}, "unknown flag --wokers; did you mean '--workers'?"},
      {{"-x"}, "unknown flag -x"},
      {{"--workers=many"}, "--workers: 'many' is not a whole number"},
      {{"--workers=-1"}, "--workers: '-1' is not a whole number"},
      {{"--workers"}, "--workers needs a value"},
      {{"--watch=maybe"}, "--watch: 'maybe' is not true or false"},
      {{"--temperature=nan"}, "--temperature: 'nan' is not a number"},
      {{"--timeout=-3s"}, "--timeout: '-3s' is not a time"},
      {{"--workers=1", "--workers=2"}, "--workers is given twice"},
      {{"-wx"}, "unknown flag -wx"},
  };
  for (const Case& c : cases) {
    const auto args = ParseFlags(Table(), c.args);
    EXPECT_THAT(args, StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(c.message)));
    EXPECT_TRUE(IsUsageError(args.status()));
    EXPECT_EQ(ExitStatus(args.status()), 2);
  }
}

TEST(FlagsTest, LeadingFlagsStopAtTheCommand) {
  std::vector<std::string> rest;
  const auto args = ParseLeadingFlags(Table(), {"--watch", "submit", "--watch", "x"}, &rest);
  QST_ASSERT_OK(args);
  EXPECT_TRUE(args->Bool("watch"));
  EXPECT_THAT(rest, ElementsAre("submit", "--watch", "x"));
}

TEST(FlagsTest, HelpShowsNamesValuesAndDefaults) {
  const std::string help = FlagHelp(Table());
  EXPECT_THAT(help, HasSubstr("-o, --output=DIR"));
  EXPECT_THAT(help, HasSubstr("processes (default: 3)"));
}

}  // namespace
}  // namespace qst
