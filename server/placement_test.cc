#include "server/placement.h"

#include <algorithm>
#include <cstdint>
#include <functional>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace qst {
namespace {

using ::testing::ElementsAre;

v1::Model ModelWithLayers(std::uint32_t num_layers) {
  v1::Model model;
  model.set_name("m");
  model.set_num_layers(num_layers);
  return model;
}

std::vector<std::string> Workers(int count) {
  std::vector<std::string> workers;
  for (int i = 0; i < count; ++i) workers.push_back("w" + std::to_string(i));
  return workers;
}

v1::ResourceConfig Resources(std::uint32_t stages, std::uint32_t workers) {
  v1::ResourceConfig resources;
  resources.set_stages(stages);
  resources.set_workers(workers);
  return resources;
}

std::vector<std::string> StageWorkers(const v1::Placement& placement) {
  std::vector<std::string> ids;
  for (const v1::PlacedStage& stage : placement.stages()) ids.push_back(stage.worker_id());
  return ids;
}

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

TEST(PlaceTest, OneFreeWorkerTakesEverything) {
  const PlacementDecision decision = Place(Resources(0, 0), ModelWithLayers(5), Workers(1));
  ASSERT_TRUE(decision.placed);
  EXPECT_THAT(StageWorkers(decision.placement), ElementsAre("w0"));
  EXPECT_EQ(decision.placement.side_worker_id(), "w0");
  EXPECT_EQ(decision.placement.stages(0).num_layers(), 5u);
}

TEST(PlaceTest, WithoutWishesTheSideNetworkIsAloneAndAllOthersHoldStages) {
  const PlacementDecision decision = Place(Resources(0, 0), ModelWithLayers(6), Workers(4));
  ASSERT_TRUE(decision.placed);
  EXPECT_THAT(StageWorkers(decision.placement), ElementsAre("w0", "w1", "w2"));
  EXPECT_EQ(decision.placement.side_worker_id(), "w3");
  EXPECT_EQ(decision.placement.stages(2).first_layer(), 4u);
  EXPECT_EQ(decision.placement.stages(2).num_layers(), 2u);
}

TEST(PlaceTest, ThereAreNeverMoreStagesThanLayers) {
  const PlacementDecision decision = Place(Resources(0, 0), ModelWithLayers(2), Workers(8));
  ASSERT_TRUE(decision.placed);
  EXPECT_EQ(decision.placement.stages_size(), 2);
  EXPECT_EQ(decision.placement.side_worker_id(), "w2");
}

TEST(PlaceTest, StagesWithoutAWorkerCountNeedOneMoreForTheSideNetwork) {
  const PlacementDecision waiting = Place(Resources(2, 0), ModelWithLayers(6), Workers(2));
  EXPECT_FALSE(waiting.placed);
  EXPECT_EQ(waiting.needed_workers, 3u);
  EXPECT_TRUE(Place(Resources(2, 0), ModelWithLayers(6), Workers(3)).placed);
}

TEST(PlaceTest, NoWorkerAtAllMeansWaitingForOne) {
  const PlacementDecision decision = Place(Resources(0, 0), ModelWithLayers(6), {});
  EXPECT_FALSE(decision.placed);
  EXPECT_EQ(decision.needed_workers, 1u);
}

TEST(PlaceTest, OneWorkerHoldsAllStagesAndTheSideNetwork) {
  const PlacementDecision decision = Place(Resources(3, 1), ModelWithLayers(6), Workers(5));
  ASSERT_TRUE(decision.placed);
  EXPECT_THAT(StageWorkers(decision.placement), ElementsAre("w0", "w0", "w0"));
  EXPECT_EQ(decision.placement.side_worker_id(), "w0");
}

TEST(PlaceTest, AsManyWorkersAsStagesPutTheSideNetworkWithTheLastStage) {
  const PlacementDecision decision = Place(Resources(2, 2), ModelWithLayers(6), Workers(3));
  ASSERT_TRUE(decision.placed);
  EXPECT_THAT(StageWorkers(decision.placement), ElementsAre("w0", "w1"));
  EXPECT_EQ(decision.placement.side_worker_id(), "w1");
}

TEST(PlaceTest, FewerWorkersThanStagesHoldNeighbouringStages) {
  const PlacementDecision decision = Place(Resources(4, 2), ModelWithLayers(8), Workers(2));
  ASSERT_TRUE(decision.placed);
  EXPECT_THAT(StageWorkers(decision.placement), ElementsAre("w0", "w0", "w1", "w1"));
  EXPECT_EQ(decision.placement.side_worker_id(), "w1");
}

TEST(PlaceTest, AWorkerCountWithoutStagesLeavesOneForTheSideNetwork) {
  EXPECT_EQ(Place(Resources(0, 3), ModelWithLayers(8), Workers(2)).needed_workers, 3u);
  const PlacementDecision decision = Place(Resources(0, 3), ModelWithLayers(8), Workers(5));
  ASSERT_TRUE(decision.placed);
  EXPECT_THAT(StageWorkers(decision.placement), ElementsAre("w0", "w1"));
  EXPECT_EQ(decision.placement.side_worker_id(), "w2");
}

TEST(WaitingMessageTest, SaysWhatIsMissingAndWhatIsThere) {
  EXPECT_EQ(WaitingMessage(3, 2, 1), "waiting for 3 idle workers, 2 registered (1 busy)");
  EXPECT_EQ(WaitingMessage(1, 0, 0), "waiting for 1 idle worker, 0 registered");
}

}  // namespace
}  // namespace qst
