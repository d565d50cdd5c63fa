#include "proto/support/plan_id.h"

#include "gtest/gtest.h"

namespace qst {
namespace {

TEST(PlanIdTest, TheRevisionIsWhatFollowsTheAttempt) {
  EXPECT_EQ(AttemptOf("j-1/2"), "j-1/2");
  EXPECT_EQ(AttemptOf("j-1/2.13"), "j-1/2");
  // A dot before the attempt is the job's.
  EXPECT_EQ(AttemptOf("job.7/2"), "job.7/2");
  EXPECT_EQ(AttemptOf("job.7/2.1"), "job.7/2");
  EXPECT_EQ(AttemptOf("no attempt"), "no attempt");
  EXPECT_EQ(AttemptOf(""), "");
}

}  // namespace
}  // namespace qst
