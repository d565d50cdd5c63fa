#include "server/placement.h"

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace qst {
namespace {

using ::testing::ElementsAre;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::StartsWith;

constexpr std::uint64_t kGigabyte = 1'000'000'000;

v1::Model ModelWithLayers(std::uint32_t num_layers) {
  v1::Model model;
  model.set_name("m");
  model.set_num_layers(num_layers);
  return model;
}

// LLaMA-2-7B in NF4, as an import reports it.
v1::Model Llama7B() {
  v1::Model model = ModelWithLayers(32);
  model.set_hidden_size(4096);
  model.set_intermediate_size(11008);
  model.set_num_heads(32);
  model.set_num_kv_heads(32);
  model.set_head_dim(128);
  model.set_vocab_size(32000);
  model.set_layer_bytes(104'500'000);
  model.set_embedding_bytes(262'144'000);
  model.set_head_bytes(262'152'192);
  return model;
}

JobLoad TrainingLoad() {
  v1::JobSpec spec;
  spec.mutable_side()->set_reduction(16);
  spec.mutable_side()->set_rank(16);
  spec.mutable_train()->set_backbone_batch_tokens(2048);
  spec.mutable_train()->set_micro_batch_tokens(1024);
  spec.mutable_train()->set_max_passes_in_flight(1);
  spec.mutable_train()->set_wire_dtype(v1::WIRE_DTYPE_BF16);
  return LoadOfTraining(spec);
}

std::vector<WorkerOffer> Workers(int count) {
  std::vector<WorkerOffer> workers(count);
  for (int i = 0; i < count; ++i) {
    workers[i].id = absl::StrCat("w", i);
    workers[i].device = "the memory of host h";
    workers[i].is_idle = true;
  }
  return workers;
}

// One GPU for each memory size given.
std::vector<WorkerOffer> Gpus(const std::vector<std::uint64_t>& gigabytes) {
  std::vector<WorkerOffer> workers;
  for (const std::uint64_t size : gigabytes) {
    WorkerOffer& worker = workers.emplace_back();
    worker.id = absl::StrCat("g", workers.size() - 1);
    worker.kind = v1::DEVICE_KIND_CUDA;
    worker.device = absl::StrCat("cuda:", workers.size() - 1, " of host h");
    worker.memory_bytes = size * kGigabyte;
    worker.is_idle = true;
  }
  return workers;
}

std::vector<WorkerOffer> Together(std::vector<WorkerOffer> a, const std::vector<WorkerOffer>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

v1::ResourceConfig Resources(std::uint32_t stages, std::uint32_t workers,
                             v1::DeviceKind device = v1::DEVICE_KIND_AUTO) {
  v1::ResourceConfig resources;
  resources.set_stages(stages);
  resources.set_workers(workers);
  resources.set_device(device);
  return resources;
}

PlacementDecision Place(const v1::ResourceConfig& resources, const v1::Model& model,
                        const std::vector<WorkerOffer>& workers) {
  return Place(PlacementRequest{resources, model, TrainingLoad()}, workers);
}

std::vector<std::string> StageWorkers(const v1::Placement& placement) {
  std::vector<std::string> ids;
  for (const v1::PlacedStage& stage : placement.stages()) ids.push_back(stage.worker_id());
  return ids;
}

TEST(PlaceTest, OneFreeWorkerTakesEverything) {
  const PlacementDecision decision = Place(Resources(0, 0), ModelWithLayers(5), Workers(1));
  ASSERT_TRUE(decision.is_placed);
  EXPECT_THAT(StageWorkers(decision.placement), ElementsAre("w0"));
  EXPECT_EQ(decision.placement.side_worker_id(), "w0");
  EXPECT_EQ(decision.placement.stages(0).num_layers(), 5u);
}

TEST(PlaceTest, WithoutWishesTheSideNetworkIsAloneAndAllOthersHoldStages) {
  const PlacementDecision decision = Place(Resources(0, 0), ModelWithLayers(6), Workers(4));
  ASSERT_TRUE(decision.is_placed);
  EXPECT_THAT(StageWorkers(decision.placement), ElementsAre("w0", "w1", "w2"));
  EXPECT_EQ(decision.placement.side_worker_id(), "w3");
  EXPECT_EQ(decision.placement.stages(2).first_layer(), 4u);
  EXPECT_EQ(decision.placement.stages(2).num_layers(), 2u);
}

TEST(PlaceTest, ThereAreNeverMoreStagesThanLayers) {
  const PlacementDecision decision = Place(Resources(0, 0), ModelWithLayers(2), Workers(8));
  ASSERT_TRUE(decision.is_placed);
  EXPECT_EQ(decision.placement.stages_size(), 2);
  EXPECT_EQ(decision.placement.side_worker_id(), "w2");
}

TEST(PlaceTest, StagesWithoutAWorkerCountNeedOneMoreForTheSideNetwork) {
  const PlacementDecision waiting = Place(Resources(2, 0), ModelWithLayers(6), Workers(2));
  EXPECT_FALSE(waiting.is_placed);
  EXPECT_EQ(waiting.message, "waiting for 3 idle cpu workers, 2 of 2 are idle");
  EXPECT_TRUE(Place(Resources(2, 0), ModelWithLayers(6), Workers(3)).is_placed);
}

TEST(PlaceTest, NoWorkerAtAllMeansWaitingForOne) {
  const PlacementDecision decision = Place(Resources(0, 0), ModelWithLayers(6), {});
  EXPECT_FALSE(decision.is_placed);
  EXPECT_EQ(decision.message, "waiting for 1 idle worker, 0 registered");
}

TEST(PlaceTest, OneWorkerHoldsAllStagesAndTheSideNetwork) {
  const PlacementDecision decision = Place(Resources(3, 1), ModelWithLayers(6), Workers(5));
  ASSERT_TRUE(decision.is_placed);
  EXPECT_THAT(StageWorkers(decision.placement), ElementsAre("w0", "w0", "w0"));
  EXPECT_EQ(decision.placement.side_worker_id(), "w0");
}

TEST(PlaceTest, AsManyWorkersAsStagesPutTheSideNetworkWithTheLastStage) {
  const PlacementDecision decision = Place(Resources(2, 2), ModelWithLayers(6), Workers(3));
  ASSERT_TRUE(decision.is_placed);
  EXPECT_THAT(StageWorkers(decision.placement), ElementsAre("w0", "w1"));
  EXPECT_EQ(decision.placement.side_worker_id(), "w1");
}

TEST(PlaceTest, FewerWorkersThanStagesHoldNeighbouringStages) {
  const PlacementDecision decision = Place(Resources(4, 2), ModelWithLayers(8), Workers(2));
  ASSERT_TRUE(decision.is_placed);
  EXPECT_THAT(StageWorkers(decision.placement), ElementsAre("w0", "w0", "w1", "w1"));
  EXPECT_EQ(decision.placement.side_worker_id(), "w1");
}

TEST(PlaceTest, AWorkerCountWithoutStagesLeavesOneForTheSideNetwork) {
  EXPECT_THAT(Place(Resources(0, 3), ModelWithLayers(8), Workers(2)).message, HasSubstr("waiting for 3 idle"));
  const PlacementDecision decision = Place(Resources(0, 3), ModelWithLayers(8), Workers(5));
  ASSERT_TRUE(decision.is_placed);
  EXPECT_THAT(StageWorkers(decision.placement), ElementsAre("w0", "w1"));
  EXPECT_EQ(decision.placement.side_worker_id(), "w2");
}

TEST(PlaceTest, ThePlacementSaysKindOfDeviceAndDataPlane) {
  PlacementDecision decision = Place(Resources(2, 0), ModelWithLayers(6), Workers(3));
  EXPECT_EQ(decision.placement.device(), v1::DEVICE_KIND_CPU);
  EXPECT_EQ(decision.placement.data_plane(), v1::DATA_PLANE_GLOO);
  EXPECT_EQ(decision.message, "2 stages and the side network on 3 cpu workers over gloo");
  decision = Place(Resources(2, 2), ModelWithLayers(6), Gpus({80, 80}));
  EXPECT_EQ(decision.placement.device(), v1::DEVICE_KIND_CUDA);
  EXPECT_EQ(decision.placement.data_plane(), v1::DATA_PLANE_NCCL);
  EXPECT_EQ(decision.message, "2 stages and the side network on 2 cuda workers over nccl");
  decision = Place(Resources(1, 1), ModelWithLayers(6), Gpus({80, 80}));
  EXPECT_EQ(decision.placement.data_plane(), v1::DATA_PLANE_IN_PROCESS);
  EXPECT_EQ(decision.message, "1 stage and the side network on 1 cuda worker");
}

TEST(PlaceTest, AutoTakesCudaWorkersWhereThereAreEnoughOfThem) {
  const std::vector<WorkerOffer> workers = Together(Workers(4), Gpus({80, 80, 80}));
  const PlacementDecision decision = Place(Resources(2, 0), ModelWithLayers(6), workers);
  ASSERT_TRUE(decision.is_placed);
  EXPECT_THAT(StageWorkers(decision.placement), ElementsAre("g0", "g1"));
  EXPECT_EQ(decision.placement.side_worker_id(), "g2");
}

TEST(PlaceTest, AutoWaitsForBusyCudaWorkersThatCouldHostIt) {
  std::vector<WorkerOffer> gpus = Gpus({80, 80, 80});
  gpus[1].is_idle = gpus[2].is_idle = false;
  const PlacementDecision decision = Place(Resources(2, 0), ModelWithLayers(6), Together(Workers(4), gpus));
  EXPECT_FALSE(decision.is_placed);
  EXPECT_EQ(decision.message, "waiting for 3 idle cuda workers, 1 of 3 is idle");
}

TEST(PlaceTest, AutoTakesCpuWorkersWhereCudaWorkersAreTooFewAndSaysWhy) {
  const PlacementDecision decision = Place(Resources(2, 0), ModelWithLayers(6), Together(Workers(3), Gpus({80})));
  ASSERT_TRUE(decision.is_placed);
  EXPECT_THAT(StageWorkers(decision.placement), ElementsAre("w0", "w1"));
  EXPECT_EQ(decision.placement.side_worker_id(), "w2");
  EXPECT_EQ(
      decision.message,
      "2 stages and the side network on 3 cpu workers over gloo (the cuda workers cannot host it: it needs 3, 1 is "
      "registered)");
}

TEST(PlaceTest, AutoTakesCpuWorkersWhereTheGpuIsTooSmall) {
  const PlacementDecision decision = Place(Resources(1, 1), Llama7B(), Together(Workers(1), Gpus({2})));
  ASSERT_TRUE(decision.is_placed);
  EXPECT_EQ(decision.placement.device(), v1::DEVICE_KIND_CPU);
  EXPECT_THAT(decision.message,
              HasSubstr("(the cuda workers cannot host it: stage 0 (layers 0 to 31) and side network"));
}

TEST(PlaceTest, KindsAreNeverMixed) {
  for (const v1::DeviceKind device : {v1::DEVICE_KIND_AUTO, v1::DEVICE_KIND_CPU, v1::DEVICE_KIND_CUDA}) {
    const PlacementDecision decision =
        Place(Resources(3, 0, device), ModelWithLayers(6), Together(Workers(2), Gpus({80, 80})));
    EXPECT_FALSE(decision.is_placed);
  }
}

TEST(PlaceTest, AKindThatIsNotThereIsNamedAndTheOtherOffered) {
  EXPECT_EQ(
      Place(Resources(2, 0, v1::DEVICE_KIND_CUDA), ModelWithLayers(6), Workers(3)).message,
      "waiting for 3 idle cuda workers, none is registered; 3 cpu workers are idle: set resources.device=cpu to use "
      "them");
  EXPECT_EQ(
      Place(Resources(1, 1, v1::DEVICE_KIND_CPU), ModelWithLayers(6), Gpus({80})).message,
      "waiting for 1 idle cpu worker, none is registered; 1 cuda worker is idle: set resources.device=cuda to use "
      "it");
}

TEST(PlaceTest, TheOtherKindIsNotOfferedWhereWaitingIsEnough) {
  std::vector<WorkerOffer> gpus = Gpus({80});
  gpus[0].is_idle = false;
  const PlacementDecision decision =
      Place(Resources(1, 1, v1::DEVICE_KIND_CUDA), ModelWithLayers(6), Together(Workers(3), gpus));
  EXPECT_EQ(decision.message, "waiting for 1 idle cuda worker, 0 of 1 are idle");
}

TEST(PlaceTest, APlacementThatDoesNotFitItsMemoryWaitsAndSaysWhatIsMissing) {
  const PlacementDecision decision = Place(Resources(1, 0, v1::DEVICE_KIND_CUDA), Llama7B(), Gpus({4, 4}));
  ASSERT_FALSE(decision.is_placed);
  EXPECT_THAT(decision.message,
              StartsWith("waiting for cuda workers with more memory: stage 0 (layers 0 to 31) needs "));
  EXPECT_THAT(decision.message,
              HasSubstr(" of cuda:0 of host h, which has 4.0 GB; with 2 stages on 3 cuda workers, each "
                        "with a device of its own, it fits"));
  EXPECT_TRUE(Place(Resources(2, 0, v1::DEVICE_KIND_CUDA), Llama7B(), Gpus({4, 4, 4})).is_placed);
}

TEST(PlaceTest, WhatFitsWithNoNumberOfStagesIsSaidToBeSo) {
  EXPECT_THAT(Place(Resources(1, 0, v1::DEVICE_KIND_CUDA), Llama7B(), Gpus({1, 1})).message,
              EndsWith("; it fits with no number of stages"));
}

TEST(PlaceTest, WithoutWishesAsManyWorkersAreNeededAsMemoryDemands) {
  EXPECT_TRUE(Place(Resources(0, 0), Llama7B(), Gpus({12})).is_placed);
  EXPECT_THAT(Place(Resources(0, 0), Llama7B(), Gpus({4})).message, HasSubstr("; with 2 stages on 3 cuda workers"));
  const PlacementDecision decision = Place(Resources(0, 0), Llama7B(), Gpus({4, 4, 4}));
  ASSERT_TRUE(decision.is_placed);
  EXPECT_EQ(decision.placement.stages_size(), 2);
}

TEST(PlaceTest, WorkersWithTooLittleMemoryAreLeftOut) {
  PlacementDecision decision = Place(Resources(1, 0), Llama7B(), Gpus({1, 8, 80}));
  ASSERT_TRUE(decision.is_placed);
  EXPECT_THAT(StageWorkers(decision.placement), ElementsAre("g2"));
  EXPECT_EQ(decision.placement.side_worker_id(), "g1");
  // The same where the number of stages is free.
  decision = Place(Resources(0, 0), Llama7B(), Gpus({1, 8, 80}));
  ASSERT_TRUE(decision.is_placed);
  EXPECT_THAT(StageWorkers(decision.placement), ElementsAre("g2"));
  EXPECT_EQ(decision.placement.side_worker_id(), "g1");
}

TEST(PlaceTest, WorkersOnOneGpuShareItsMemory) {
  std::vector<WorkerOffer> gpus = Gpus({6, 6, 6});
  ASSERT_TRUE(Place(Resources(2, 0), Llama7B(), gpus).is_placed);
  for (WorkerOffer& worker : gpus) worker.device = "cuda:0 of host h";
  const PlacementDecision decision = Place(Resources(2, 0), Llama7B(), gpus);
  ASSERT_FALSE(decision.is_placed);
  EXPECT_THAT(decision.message,
              HasSubstr("stage 0 (layers 0 to 15) and stage 1 (layers 16 to 31) and side network need "));
}

TEST(PlaceTest, MemoryThatOtherJobsTakeIsNotGivenAgain) {
  std::vector<WorkerOffer> gpus = Gpus({14, 14});
  gpus[1].device = gpus[0].device;
  ASSERT_TRUE(Place(Resources(1, 1), Llama7B(), gpus).is_placed);
  gpus[0].is_idle = false;
  gpus[0].used_bytes = 9 * kGigabyte;
  EXPECT_THAT(Place(Resources(1, 1), Llama7B(), gpus).message, HasSubstr("which has 5.0 GB of its 14.0 GB left"));
}

TEST(PlaceTest, PartsCarryWhatTheyNeed) {
  const PlacementDecision decision = Place(Resources(2, 0), Llama7B(), Gpus({80, 80, 80}));
  const MemoryNeed need(Llama7B(), TrainingLoad(), v1::DEVICE_KIND_CUDA);
  EXPECT_EQ(decision.placement.stages(0).memory_bytes(), need.StageBytes(0, 16));
  EXPECT_EQ(decision.placement.stages(1).memory_bytes(), need.StageBytes(16, 16));
  EXPECT_EQ(decision.placement.side_memory_bytes(), need.SideBytes());
}

TEST(WaitingMessageTest, SaysWhatIsMissingAndWhatIsThere) {
  EXPECT_EQ(WaitingMessage(3, 2, 1), "waiting for 3 idle workers, 2 registered (1 busy)");
  EXPECT_EQ(WaitingMessage(1, 0, 0), "waiting for 1 idle worker, 0 registered");
}

}  // namespace
}  // namespace qst
