#include "worker/compute_device.h"

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/device_memory.h"
#include "proto/support/status_matchers.h"

namespace qst {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

TEST(ComputeDeviceTest, PartsOnCpuShareOnePoolAndReserveNothing) {
  ComputeDeviceOptions options;
  options.num_threads = 3;
  options.isa = CpuIsa::kPortable;
  const auto device = ComputeDevice::Open(options);
  QST_ASSERT_OK(device);
  EXPECT_FALSE((*device)->is_cuda());
  EXPECT_EQ((*device)->id(), "cpu");
  EXPECT_EQ((*device)->gpu_name(), "");
  EXPECT_EQ((*device)->gpu_memory_bytes(), 0);
  EXPECT_EQ((*device)->DescribeMemory(), "");
  const auto first = (*device)->NewContext();
  const auto second = (*device)->NewContext();
  QST_ASSERT_OK(first);
  QST_ASSERT_OK(second);
  EXPECT_EQ((*first)->ops().device, DeviceType::kCpu);
  EXPECT_EQ((*first)->ops().isa, CpuIsa::kPortable);
  EXPECT_EQ((*first)->ops().threads->num_threads(), 3);
  EXPECT_EQ((*first)->ops().threads, (*second)->ops().threads);
  QST_EXPECT_OK((*first)->BindThread());
  QST_EXPECT_OK((*device)->Reserve("a", std::int64_t{1} << 60, "all"));
}

TEST(ComputeDeviceTest, GpuThatIsNotThereIsRefused) {
  ComputeDeviceOptions options;
  options.gpu = 4711;
  const absl::Status status = ComputeDevice::Open(options).status();
  if (absl::IsUnimplemented(status)) {
    EXPECT_THAT(status, StatusIs(absl::StatusCode::kUnimplemented, HasSubstr("no CUDA backend")));
  } else {
    EXPECT_THAT(status, StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("cuda:4711")));
  }
}

class ComputeDeviceGpuTest : public ::testing::Test {
 protected:
  static constexpr std::int64_t kBudget = 100'000'000;

  void SetUp() override {
    if (cuda::Device::Count() == 0) GTEST_SKIP() << "no GPU, or a build without the CUDA backend";
    ComputeDeviceOptions options;
    options.gpu = 0;
    options.gpu_memory_bytes = kBudget;
    auto device = ComputeDevice::Open(options);
    QST_ASSERT_OK(device);
    device_ = *std::move(device);
  }

  std::unique_ptr<ComputeDevice> device_;
};

TEST_F(ComputeDeviceGpuTest, EveryPartHasAStreamOfItsOwn) {
  EXPECT_EQ(device_->id(), "cuda:0");
  EXPECT_THAT(device_->gpu_name(), HasSubstr("cuda:0"));
  EXPECT_EQ(device_->gpu_memory_bytes(), kBudget);
  const auto first = device_->NewContext();
  const auto second = device_->NewContext();
  QST_ASSERT_OK(first);
  QST_ASSERT_OK(second);
  EXPECT_EQ((*first)->ops().device, DeviceType::kCuda);
  EXPECT_NE((*first)->ops().stream, (*second)->ops().stream);
  std::thread([&] {
    QST_EXPECT_OK((*second)->BindThread());
    std::vector<int> sent = {1, 2, 3};
    std::vector<int> received(3);
    const auto memory = DeviceMemory::CopyOf((*second)->ops(), sent.data(), 12);
    QST_ASSERT_OK(memory);
    QST_ASSERT_OK(Download((*second)->ops(), memory->data(), 12, received.data()));
    EXPECT_EQ(received, sent);
  }).join();
}

TEST_F(ComputeDeviceGpuTest, PartsCannotReserveTheSameMemoryTwice) {
  QST_EXPECT_OK(device_->Reserve("a", 60'000'000, "weights"));
  EXPECT_THAT(device_->Reserve("b", 50'000'000, "weights 30.0 MB, activations 20.0 MB"),
              StatusIs(absl::StatusCode::kResourceExhausted,
                       HasSubstr("50.0 MB are needed (weights 30.0 MB, activations 20.0 MB), 40.0 MB are left of the "
                                 "budget of 100.0 MB; use more stages")));
  // In place of what the part had.
  QST_EXPECT_OK(device_->Reserve("a", 50'000'000, "less"));
  QST_EXPECT_OK(device_->Reserve("b", 50'000'000, "weights"));
  device_->Unreserve("a");
  QST_EXPECT_OK(device_->Reserve("c", 50'000'000, "weights"));
  EXPECT_THAT(device_->Reserve("b", kBudget + 1, "too much"), StatusIs(absl::StatusCode::kResourceExhausted));
  // What was refused holds nothing.
  QST_EXPECT_OK(device_->Reserve("d", 50'000'000, "weights"));
}

TEST_F(ComputeDeviceGpuTest, PeakIsWhatWasAllocatedAtOnceSinceItsReset) {
  const auto context = device_->NewContext();
  QST_ASSERT_OK(context);
  {
    const auto memory = DeviceMemory::Allocate((*context)->ops(), 64 << 20);
    QST_ASSERT_OK(memory);
    EXPECT_THAT(device_->DescribeMemory(), StartsWith("peak 67.1 MB of budget 100.0 MB on cuda:0"));
  }
  device_->ResetPeak();
  EXPECT_THAT(device_->DescribeMemory(), StartsWith("peak 0.0 MB"));
}

}  // namespace
}  // namespace qst
