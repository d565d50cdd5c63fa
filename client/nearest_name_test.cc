#include "client/nearest_name.h"

#include "gtest/gtest.h"

namespace qst {
namespace {

TEST(NearestNameTest, DistanceCountsEditsAndSwapsAsOne) {
  EXPECT_EQ(EditDistance("", ""), 0);
  EXPECT_EQ(EditDistance("", "abc"), 3);
  EXPECT_EQ(EditDistance("rank", "rank"), 0);
  EXPECT_EQ(EditDistance("rnak", "rank"), 1);
  EXPECT_EQ(EditDistance("lerning_rate", "learning_rate"), 1);
  EXPECT_EQ(EditDistance("kitten", "sitting"), 3);
}

TEST(NearestNameTest, FindsTypingErrorsAndBeginnings) {
  const std::vector<std::string> names = {"epochs", "learning_rate", "batch_size", "seed"};
  EXPECT_EQ(NearestName("lerning_rate", names), "learning_rate");
  EXPECT_EQ(NearestName("batchsize", names), "batch_size");
  EXPECT_EQ(NearestName("epoch", names), "epochs");
  EXPECT_EQ(NearestName("learn", names), "learning_rate");
}

TEST(NearestNameTest, StaysSilentWhenNothingIsNear) {
  EXPECT_EQ(NearestName("optimizer", {"epochs", "seed"}), "");
  EXPECT_EQ(NearestName("", {"epochs"}), "");
  EXPECT_EQ(NearestName(std::string(5000, 'x'), {"epochs"}), "");
  EXPECT_EQ(DidYouMean("optimizer", {"epochs", "seed"}), "");
  EXPECT_EQ(DidYouMean("sed", {"epochs", "seed"}), "; did you mean 'seed'?");
}

}  // namespace
}  // namespace qst
