#include "server/layer_split.h"

#include <algorithm>
#include <cstdint>
#include <functional>
#include <limits>
#include <numeric>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace qst {
namespace {

using ::testing::ElementsAre;

double Dearest(const std::vector<double>& costs, double first, const std::vector<std::uint32_t>& sizes) {
  double dearest = 0;
  std::size_t layer = 0;
  for (std::size_t stage = 0; stage < sizes.size(); ++stage) {
    double cost = stage == 0 ? first : 0;
    for (std::uint32_t i = 0; i < sizes[stage]; ++i) cost += costs[layer++];
    dearest = std::max(dearest, cost);
  }
  return dearest;
}

// All splits of `left` layers into `stages` non-empty runs.
void ForEachSplit(std::uint32_t left, std::uint32_t stages, std::vector<std::uint32_t>* prefix,
                  const std::function<void(const std::vector<std::uint32_t>&)>& visit) {
  if (stages == 1) {
    prefix->push_back(left);
    visit(*prefix);
    prefix->pop_back();
    return;
  }
  for (std::uint32_t size = 1; size + stages - 1 <= left; ++size) {
    prefix->push_back(size);
    ForEachSplit(left - size, stages - 1, prefix, visit);
    prefix->pop_back();
  }
}

TEST(SplitLayersTest, EqualLayersDivideEvenly) {
  EXPECT_THAT(SplitLayers(std::vector<double>(30, 1.0), 0.0, 2), ElementsAre(15, 15));
  EXPECT_THAT(SplitLayers(std::vector<double>(30, 1.0), 0.05, 3), ElementsAre(10, 10, 10));
  EXPECT_THAT(SplitLayers(std::vector<double>(5, 1.0), 0.05, 5), ElementsAre(1, 1, 1, 1, 1));
  EXPECT_THAT(SplitLayers(std::vector<double>(5, 1.0), 0.05, 1), ElementsAre(5));
}

TEST(SplitLayersTest, TheFirstStageGetsTheSmallerShareWhereLayersDoNotDivideEvenly) {
  EXPECT_THAT(SplitLayers(std::vector<double>(5, 1.0), 0.05, 2), ElementsAre(2, 3));
  const std::vector<std::uint32_t> sizes = SplitLayers(std::vector<double>(30, 1.0), 0.05, 4);
  EXPECT_EQ(sizes[0], 7u);
  EXPECT_EQ(*std::max_element(sizes.begin(), sizes.end()), 8u);
  EXPECT_EQ(*std::min_element(sizes.begin(), sizes.end()), 7u);
}

TEST(SplitLayersTest, NoOtherSplitHasACheaperDearestStage) {
  // Pseudo-random costs, the same in every run.
  std::uint32_t state = 12345;
  for (int round = 0; round < 40; ++round) {
    std::vector<double> costs(3 + round % 7);
    for (double& cost : costs) {
      state = state * 1664525 + 1013904223;
      cost = 1 + (state >> 24) % 16;
    }
    const double first = round % 5;
    for (std::uint32_t stages = 1; stages <= costs.size(); ++stages) {
      const std::vector<std::uint32_t> sizes = SplitLayers(costs, first, stages);
      ASSERT_EQ(sizes.size(), stages);
      ASSERT_EQ(std::accumulate(sizes.begin(), sizes.end(), 0u), costs.size());
      ASSERT_GE(*std::min_element(sizes.begin(), sizes.end()), 1u);
      double best = std::numeric_limits<double>::infinity();
      std::vector<std::uint32_t> prefix;
      ForEachSplit(
          static_cast<std::uint32_t>(costs.size()), stages, &prefix,
          [&](const std::vector<std::uint32_t>& split) { best = std::min(best, Dearest(costs, first, split)); });
      EXPECT_DOUBLE_EQ(Dearest(costs, first, sizes), best) << "round " << round << ", stages " << stages;
    }
  }
}

}  // namespace
}  // namespace qst
