#include "server/stage_replacement.h"

#include <set>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace qst {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr std::uint64_t kGiB = std::uint64_t{1} << 30;

WorkerOffer Offer(const std::string& id, bool is_idle, std::uint64_t gib = 0,
                  v1::DeviceKind kind = v1::DEVICE_KIND_CUDA, const std::string& device = "") {
  WorkerOffer offer;
  offer.id = id;
  offer.kind = kind;
  offer.device = device.empty() ? "device of " + id : device;
  offer.memory_bytes = gib * kGiB;
  offer.is_idle = is_idle;
  return offer;
}

// Stages 0, 1, ... on these workers with 4 GiB each, the side network on "side".
ReplacementRequest Request(const std::vector<std::string>& stage_workers, std::set<std::string> gone) {
  ReplacementRequest request;
  v1::Placement& placement = request.placement;
  for (std::size_t i = 0; i < stage_workers.size(); ++i) {
    v1::PlacedStage* stage = placement.add_stages();
    stage->set_stage(i);
    stage->set_worker_id(stage_workers[i]);
    stage->set_first_layer(2 * i);
    stage->set_num_layers(2);
    stage->set_memory_bytes(4 * kGiB);
  }
  placement.set_side_worker_id("side");
  placement.set_side_memory_bytes(4 * kGiB);
  placement.set_device(v1::DEVICE_KIND_CUDA);
  placement.set_data_plane(v1::DATA_PLANE_NCCL);
  request.gone = std::move(gone);
  return request;
}

std::vector<std::string> WorkersOf(const PlacementDecision& decision) {
  std::vector<std::string> ids;
  for (const v1::PlacedStage& stage : decision.placement.stages()) ids.push_back(stage.worker_id());
  return ids;
}

TEST(StageReplacementTest, OnlyTheLostStageMoves) {
  const auto decision = ReplaceStages(
      Request({"a", "b", "c"}, {"b"}),
      {Offer("a", false, 8), Offer("c", false, 8), Offer("d", true, 8), Offer("e", true, 8), Offer("side", false, 8)});
  ASSERT_TRUE(decision.is_placed) << decision.message;
  EXPECT_THAT(WorkersOf(decision), ElementsAre("a", "d", "c"));
  EXPECT_EQ(decision.placement.stages(1).first_layer(), 2u);
  EXPECT_EQ(decision.placement.revision(), 1u);
  EXPECT_EQ(decision.placement.data_plane(), v1::DATA_PLANE_NCCL);
  EXPECT_EQ(decision.message, "stage 1 goes to worker d");
}

TEST(StageReplacementTest, WorkersOfAnotherKindOrWithTooLittleMemoryAreNoReplacement) {
  const auto decision =
      ReplaceStages(Request({"a", "b"}, {"b"}), {Offer("a", false, 8), Offer("cpu", true, 64, v1::DEVICE_KIND_CPU),
                                                 Offer("small", true, 3), Offer("side", false, 8)});
  EXPECT_FALSE(decision.is_placed);
  EXPECT_EQ(decision.message, "waiting for an idle cuda worker with 4.3 GB for stage 1");
}

TEST(StageReplacementTest, WorkersOfOneDeviceShareItsMemory) {
  ReplacementRequest request = Request({"a", "b"}, {"b"});
  const std::vector<WorkerOffer> workers = {Offer("a", false, 11, v1::DEVICE_KIND_CUDA, "gpu"),
                                            Offer("d", true, 11, v1::DEVICE_KIND_CUDA, "gpu"),
                                            Offer("side", false, 11, v1::DEVICE_KIND_CUDA, "gpu")};
  EXPECT_FALSE(ReplaceStages(request, workers).is_placed);
  request.placement.set_side_memory_bytes(3 * kGiB);
  EXPECT_TRUE(ReplaceStages(request, workers).is_placed);
}

TEST(StageReplacementTest, StagesOfOneWorkerStayTogetherWhereTheyFit) {
  const ReplacementRequest request = Request({"a", "a", "b"}, {"a"});
  EXPECT_THAT(WorkersOf(ReplaceStages(
                  request, {Offer("b", false, 8), Offer("d", true, 8), Offer("e", true, 8), Offer("side", false, 8)})),
              ElementsAre("d", "d", "b"));
  EXPECT_THAT(WorkersOf(ReplaceStages(
                  request, {Offer("b", false, 8), Offer("d", true, 7), Offer("e", true, 7), Offer("side", false, 8)})),
              ElementsAre("d", "e", "b"));
}

TEST(StageReplacementTest, AStageJoinsItsNeighbourAtLastIfThatHasTheMemory) {
  ReplacementRequest request = Request({"a", "b", "c"}, {"c"});
  request.may_share = true;
  EXPECT_THAT(
      WorkersOf(ReplaceStages(request, {Offer("a", false, 16), Offer("b", false, 16), Offer("side", false, 16)})),
      ElementsAre("a", "b", "b"));
  EXPECT_THAT(WorkersOf(ReplaceStages(request, {Offer("a", false, 16), Offer("b", false, 7), Offer("side", false, 7)})),
              ElementsAre("a", "b", "a"));
  const auto decision = ReplaceStages(request, {Offer("a", false, 7), Offer("b", false, 7), Offer("side", false, 7)});
  EXPECT_FALSE(decision.is_placed);
  EXPECT_THAT(decision.message, HasSubstr("for stage 2"));
}

TEST(StageReplacementTest, WhenOnlyTheSideNetworksWorkerIsLeftAllIsInOneProcess) {
  ReplacementRequest request = Request({"a", "b"}, {"a", "b"});
  request.may_share = true;
  const auto decision = ReplaceStages(request, {Offer("side", false)});
  ASSERT_TRUE(decision.is_placed) << decision.message;
  EXPECT_THAT(WorkersOf(decision), ElementsAre("side", "side"));
  EXPECT_EQ(decision.placement.data_plane(), v1::DATA_PLANE_IN_PROCESS);
}

TEST(StageReplacementTest, AWorkerThatCameBackUnderItsOldIdIsIdleAndMayTakeItsStageAgain) {
  EXPECT_THAT(WorkersOf(ReplaceStages(Request({"a", "b"}, {"b"}),
                                      {Offer("a", false, 8), Offer("b", true, 8), Offer("side", false, 8)})),
              ElementsAre("a", "b"));
}

TEST(StageReplacementTest, WithNobodyGoneTheSameWorkersMeetAgain) {
  const auto decision =
      ReplaceStages(Request({"a", "b"}, {}), {Offer("a", false, 8), Offer("b", false, 8), Offer("side", false, 8)});
  EXPECT_THAT(WorkersOf(decision), ElementsAre("a", "b"));
  EXPECT_EQ(decision.message, "all stages stay where they are");
}

}  // namespace
}  // namespace qst
