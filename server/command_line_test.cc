#include "server/command_line.h"

#include <string>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/time/time.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/support/status_matchers.h"

ABSL_FLAG(std::string, test_text, "default", "some text");
ABSL_FLAG(bool, test_switch, true, "a switch");
ABSL_FLAG(absl::Duration, test_time, absl::Seconds(10), "a time");

namespace qst {
namespace {

using ::testing::HasSubstr;

absl::Status Parse(std::vector<const char*> arguments, bool* wants_help = nullptr) {
  bool ignored = false;
  arguments.insert(arguments.begin(), "program");
  return ParseFlags(static_cast<int>(arguments.size()), arguments.data(), wants_help ? wants_help : &ignored);
}

TEST(CommandLineTest, SetsFlagsInAllForms) {
  QST_ASSERT_OK(Parse({"--test_text=a=b", "--notest_switch", "--test_time", "3s"}));
  EXPECT_EQ(absl::GetFlag(FLAGS_test_text), "a=b");
  EXPECT_FALSE(absl::GetFlag(FLAGS_test_switch));
  EXPECT_EQ(absl::GetFlag(FLAGS_test_time), absl::Seconds(3));
  QST_ASSERT_OK(Parse({"--test_switch", "--test_text="}));
  EXPECT_TRUE(absl::GetFlag(FLAGS_test_switch));
  EXPECT_EQ(absl::GetFlag(FLAGS_test_text), "");
  QST_ASSERT_OK(Parse({"--test_switch=false"}));
  EXPECT_FALSE(absl::GetFlag(FLAGS_test_switch));
}

TEST(CommandLineTest, WrongUsageIsAnErrorThatNamesTheArgument) {
  EXPECT_THAT(Parse({"--bogus"}), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("unknown flag --bogus")));
  EXPECT_THAT(Parse({"--notest_text"}), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("--notest_text")));
  EXPECT_THAT(Parse({"--test_time=soon"}), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("'soon'")));
  EXPECT_THAT(Parse({"--test_text"}), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("needs a value")));
  EXPECT_THAT(Parse({"stray"}), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("'stray'")));
  EXPECT_THAT(Parse({"--"}), StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST(CommandLineTest, HelpIsAskedForNotGiven) {
  bool wants_help = false;
  QST_ASSERT_OK(Parse({"--help"}, &wants_help));
  EXPECT_TRUE(wants_help);
  EXPECT_THAT(DescribeFlags(__FILE__), HasSubstr("--test_time=10s\n      a time"));
}

}  // namespace
}  // namespace qst
