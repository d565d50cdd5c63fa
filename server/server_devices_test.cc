// CPU and CUDA workers in one cluster: where jobs go, what they wait for, and that memory is not given twice.
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/support/status_matchers.h"
#include "server/testing/server_fixture.h"

namespace qst {
namespace {

using ::testing::HasSubstr;

constexpr std::uint64_t kGigabyte = 1'000'000'000;

class ServerDevicesTest : public ServerFixture {
 protected:
  ServerDevicesTest() {
    MakeModel("m");
    MakeDataset("d");
  }
  std::string SubmitOn(v1::DeviceKind device, std::uint32_t stages, std::uint32_t workers) {
    v1::JobSpec spec = Spec(stages, workers);
    spec.mutable_resources()->set_device(device);
    const auto job = Submit(spec);
    EXPECT_TRUE(job.ok()) << job.status();
    return job.ok() ? job->id() : "";
  }
  static void Release(FakeWorker* worker, const std::vector<v1::HostPart>& parts) {
    ASSERT_TRUE(worker->Await(v1::WorkerCommand::kRelease).has_value());
    for (const v1::HostPart& part : parts) worker->ReportPart(part, v1::PART_STATE_RELEASED);
  }
};

TEST_F(ServerDevicesTest, WorkersAreListedWithTheirDevices) {
  auto cpu = NewWorker("w0");
  auto gpu = NewCudaWorker("w1", "cuda:3", 80 * kGigabyte);
  v1::ListWorkersResponse response;
  ASSERT_TRUE(api()->ListWorkers(Context().get(), {}, &response).ok());
  for (const v1::Worker& worker : response.workers()) {
    if (worker.id() == "w0") {
      EXPECT_EQ(worker.device(), "cpu");
      EXPECT_EQ(worker.device_name(), "");
      EXPECT_EQ(worker.device_memory_bytes(), 0u);
    } else if (worker.id() == "w1") {
      EXPECT_EQ(worker.device(), "cuda:3");
      EXPECT_EQ(worker.device_name(), "Test GPU (cuda:3, sm_90)");
      EXPECT_EQ(worker.device_memory_bytes(), 80 * kGigabyte);
    }
  }
}

TEST_F(ServerDevicesTest, AJobWithoutAWishGoesToCudaWorkersAndKeepsThatChoice) {
  auto cpu = NewWorker("w0");
  auto gpu0 = NewCudaWorker("w1", "cuda:0", 80 * kGigabyte);
  auto gpu1 = NewCudaWorker("w2", "cuda:1", 80 * kGigabyte);
  const std::string id = SubmitOn(v1::DEVICE_KIND_AUTO, 1, 2);
  const auto stage = gpu0->AwaitParts(1);
  const auto side = gpu1->AwaitParts(1);
  ASSERT_EQ(stage.size(), 1u);
  ASSERT_EQ(side.size(), 1u);
  EXPECT_EQ(stage[0].plan().data_plane(), v1::DATA_PLANE_NCCL);
  EXPECT_GT(stage[0].plan().stages(0).memory_bytes(), 0u);
  EXPECT_GT(side[0].plan().side_memory_bytes(), 0u);
  EXPECT_EQ(side[0].train().spec().resources().device(), v1::DEVICE_KIND_CUDA);
  EXPECT_EQ(stage[0].plan().compute_dtype(), v1::COMPUTE_DTYPE_BF16);
  EXPECT_TRUE(side[0].plan().side_tf32());
  v1::Job job = GetJob(id);
  EXPECT_EQ(job.placement().device(), v1::DEVICE_KIND_CUDA);
  EXPECT_EQ(job.placement().data_plane(), v1::DATA_PLANE_NCCL);
  EXPECT_THAT(job.status_message(), HasSubstr("on 2 cuda workers over nccl"));

  // It never resumes with another device's arithmetic.
  CrashServer();
  StartServer();
  gpu0.reset();
  gpu1.reset();
  cpu = NewWorker("w0", {}, "second");
  auto cpu1 = NewWorker("w3");
  AwaitMessage(id, "waiting for 2 idle cuda workers, none is registered");
  gpu0 = NewCudaWorker("w1", "cuda:0", 80 * kGigabyte);
  gpu1 = NewCudaWorker("w2", "cuda:1", 80 * kGigabyte);
  const auto again = gpu0->AwaitParts(1);
  ASSERT_EQ(again.size(), 1u);
  EXPECT_EQ(again[0].plan().plan_id(), id + "/2");
}

TEST_F(ServerDevicesTest, AJobOnCpuWorkersLeavesCudaWorkersAlone) {
  auto gpu = NewCudaWorker("w0", "cuda:0", 80 * kGigabyte);
  auto cpu = NewWorker("w1");
  const std::string id = SubmitOn(v1::DEVICE_KIND_CPU, 1, 1);
  ASSERT_EQ(cpu->AwaitParts(2).size(), 2u);
  const v1::Job job = GetJob(id);
  EXPECT_EQ(job.spec().train().dtype(), v1::COMPUTE_DTYPE_F32);
  EXPECT_FALSE(job.spec().train().tf32());
  EXPECT_EQ(job.placement().device(), v1::DEVICE_KIND_CPU);
  EXPECT_EQ(job.placement().data_plane(), v1::DATA_PLANE_IN_PROCESS);
}

TEST_F(ServerDevicesTest, AJobForCudaWaitsWithoutOneAndSaysWhatElseIsThere) {
  auto cpu = NewWorker("w0");
  const std::string id = SubmitOn(v1::DEVICE_KIND_CUDA, 1, 1);
  AwaitMessage(id,
               "waiting for 1 idle cuda worker, none is registered; 1 cpu worker is idle: set resources.device=cpu");
  auto gpu = NewCudaWorker("w1", "cuda:0", 80 * kGigabyte);
  EXPECT_EQ(gpu->AwaitParts(2).size(), 2u);
}

TEST_F(ServerDevicesTest, AJobThatDoesNotFitIsHeldUntilAWorkerWithMoreMemoryComes) {
  auto small = NewCudaWorker("w0", "cuda:0", kGigabyte / 10);
  const std::string id = SubmitOn(v1::DEVICE_KIND_CUDA, 1, 1);
  AwaitMessage(id, "waiting for cuda workers with more memory: stage 0 (layers 0 to 5) and side network need ");
  EXPECT_EQ(GetJob(id).state(), v1::JOB_STATE_QUEUED);
  auto large = NewCudaWorker("w1", "cuda:1", 2 * kGigabyte);
  EXPECT_EQ(large->AwaitParts(2).size(), 2u);
}

TEST_F(ServerDevicesTest, AGpuThatWorkersShareIsNotGivenTwice) {
  // One job of this model takes less than a gigabyte, two take more.
  auto first = NewCudaWorker("w0", "cuda:0", kGigabyte);
  auto second = NewCudaWorker("w1", "cuda:0", kGigabyte);
  const std::string a = SubmitOn(v1::DEVICE_KIND_CUDA, 1, 1);
  const std::string b = SubmitOn(v1::DEVICE_KIND_CUDA, 1, 1);
  const auto parts = first->AwaitParts(2);
  ASSERT_EQ(parts.size(), 2u);
  AwaitMessage(b, " of cuda:0 of host testhost, which has ");
  EXPECT_EQ(GetJob(b).state(), v1::JOB_STATE_QUEUED);
  first->ReportPart(parts[0], v1::PART_STATE_READY);
  const v1::HostPart& side = parts[0].is_side() ? parts[0] : parts[1];
  first->ReportState(side, 1, v1::JOB_STATE_RUNNING);
  AwaitState(a, v1::JOB_STATE_RUNNING);
  first->ReportState(side, 2, v1::JOB_STATE_SUCCEEDED);
  AwaitState(a, v1::JOB_STATE_SUCCEEDED);
  Release(first.get(), parts);
  EXPECT_EQ(first->AwaitParts(2).size(), 2u);
  EXPECT_EQ(GetJob(b).state(), v1::JOB_STATE_PREPARING);
}

TEST_F(ServerDevicesTest, AGenerationGoesToTheKindOfWorkerThatItAsksFor) {
  auto gpu = NewCudaWorker("w0", "cuda:0", 80 * kGigabyte);
  auto cpu = NewWorker("w1");
  v1::GenerateRequest request;
  request.set_model("m");
  request.set_prompt("Once");
  for (FakeWorker* worker : {gpu.get(), cpu.get()}) {
    request.mutable_resources()->set_device(worker == gpu.get() ? v1::DEVICE_KIND_AUTO : v1::DEVICE_KIND_CPU);
    request.mutable_resources()->set_workers(1);
    const auto context = Context();
    const auto reader = api()->Generate(context.get(), request);
    EXPECT_EQ(worker->AwaitParts(2).size(), 2u) << worker->id();
    context->TryCancel();
    v1::GenerateResponse response;
    while (reader->Read(&response)) {
    }
    EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  }
}

}  // namespace
}  // namespace qst
