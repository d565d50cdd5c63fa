#include "kernels/cuda/device.h"

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/support/status_matchers.h"

namespace qst {
namespace cuda {
namespace {

using ::testing::HasSubstr;

std::unique_ptr<Device> OpenWithBudget(std::int64_t bytes) {
  DeviceOptions options;
  options.memory_budget_bytes = bytes;
  absl::StatusOr<std::unique_ptr<Device>> device = Device::Open(options);
  return device.ok() ? *std::move(device) : nullptr;
}

class CudaDeviceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (Device::Count() == 0) GTEST_SKIP() << "no GPU, or a build without the CUDA backend";
  }
};

TEST(CudaDeviceAbsentTest, OpeningADeviceThatIsNotThereSaysWhatThereIs) {
  DeviceOptions options;
  options.ordinal = 4711;
  const absl::Status status = Device::Open(options).status();
  EXPECT_FALSE(status.ok());
  EXPECT_TRUE(absl::IsUnimplemented(status) || absl::IsFailedPrecondition(status)) << status;
  EXPECT_TRUE(absl::IsUnimplemented(status) ? status.message() == "this build has no CUDA backend; build with --config=cuda"
                                            : absl::StrContains(status.message(), "cuda:4711: there is no such GPU"))
      << status;
}

TEST_F(CudaDeviceTest, AllocationsBeyondTheBudgetAreRefusedAndChangeNothing) {
  const std::unique_ptr<Device> device = OpenWithBudget(64 << 20);
  ASSERT_NE(device, nullptr);
  absl::StatusOr<void*> first = device->Allocate(40 << 20);
  QST_ASSERT_OK(first);
  QST_EXPECT_OK(device->CheckFits(20 << 20));
  EXPECT_THAT(device->CheckFits(30 << 20), StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("do not fit")));
  EXPECT_THAT(device->Allocate(30 << 20),
              StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("of the budget of 67.1 MB are in use")));
  EXPECT_EQ(device->allocated_bytes(), 40 << 20);
  device->Free(*first);
  EXPECT_EQ(device->allocated_bytes(), 0);
  EXPECT_EQ(device->peak_bytes(), 40 << 20);
}

TEST_F(CudaDeviceTest, FreedPiecesServeRequestsOfLikeSizeAndMakeRoomForOthers) {
  const std::unique_ptr<Device> device = OpenWithBudget(64 << 20);
  ASSERT_NE(device, nullptr);
  absl::StatusOr<void*> first = device->Allocate(32 << 20);
  QST_ASSERT_OK(first);
  device->Free(*first);
  absl::StatusOr<void*> again = device->Allocate((32 << 20) - 1000);
  QST_ASSERT_OK(again);
  EXPECT_EQ(*again, *first);
  device->Free(*again);
  // The free piece is too small for this one and in its way.
  absl::StatusOr<void*> larger = device->Allocate(60 << 20);
  QST_ASSERT_OK(larger);
  device->Free(*larger);
}

TEST_F(CudaDeviceTest, ABudgetAboveWhatIsFreeIsRefused) {
  DeviceOptions options;
  options.memory_budget_bytes = std::int64_t{1} << 50;
  EXPECT_THAT(Device::Open(options), StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("is more than the")));
}

TEST_F(CudaDeviceTest, StreamsHandOverByEvents) {
  const std::unique_ptr<Device> device = OpenWithBudget(64 << 20);
  ASSERT_NE(device, nullptr);
  absl::StatusOr<StreamPtr> first = device->NewStream();
  absl::StatusOr<StreamPtr> second = device->NewStream();
  QST_ASSERT_OK(first);
  QST_ASSERT_OK(second);
  constexpr std::int64_t kBytes = 16 << 20;
  absl::StatusOr<void*> a = device->Allocate(kBytes);
  absl::StatusOr<void*> b = device->Allocate(kBytes);
  QST_ASSERT_OK(a);
  QST_ASSERT_OK(b);
  absl::StatusOr<Event> event = Event::Create();
  QST_ASSERT_OK(event);
  const std::vector<char> sent(kBytes, 3);
  QST_ASSERT_OK(CopyToDevice(**first, sent.data(), kBytes, *a));
  QST_ASSERT_OK(event->Record(**first));
  QST_ASSERT_OK(event->MakeWait(**second));
  QST_ASSERT_OK(CopyOnDevice(**second, *a, kBytes, *b));
  std::vector<char> received(kBytes);
  QST_ASSERT_OK(CopyToHost(**second, *b, kBytes, received.data()));
  EXPECT_EQ(received, sent);
  const absl::StatusOr<bool> is_done = event->IsDone();
  QST_ASSERT_OK(is_done);
  EXPECT_TRUE(*is_done);
  device->Free(*a);
  device->Free(*b);
}

TEST_F(CudaDeviceTest, TimedEventsMeasureTheWorkBetweenThem) {
  const std::unique_ptr<Device> device = OpenWithBudget(64 << 20);
  ASSERT_NE(device, nullptr);
  QST_ASSERT_OK(device->MakeCurrent());
  const absl::StatusOr<StreamPtr> stream = device->NewStream();
  QST_ASSERT_OK(stream);
  absl::StatusOr<Event> begin = Event::Create(/*is_timed=*/true);
  absl::StatusOr<Event> end = Event::Create(/*is_timed=*/true);
  QST_ASSERT_OK(begin);
  QST_ASSERT_OK(end);
  constexpr std::int64_t kBytes = 32 << 20;
  const absl::StatusOr<void*> memory = device->Allocate(kBytes);
  QST_ASSERT_OK(memory);
  QST_ASSERT_OK(begin->Record(**stream));
  QST_ASSERT_OK(FillZero(**stream, *memory, kBytes));
  QST_ASSERT_OK(end->Record(**stream));
  QST_ASSERT_OK(end->Synchronize());
  const absl::StatusOr<double> milliseconds = end->MillisecondsSince(*begin);
  QST_ASSERT_OK(milliseconds);
  EXPECT_GT(*milliseconds, 0.0);
  absl::StatusOr<Event> untimed = Event::Create();
  QST_ASSERT_OK(untimed);
  QST_ASSERT_OK(untimed->Record(**stream));
  QST_ASSERT_OK(Synchronize(**stream));
  EXPECT_THAT(untimed->MillisecondsSince(*begin), StatusIs(absl::StatusCode::kInternal));
  device->Free(*memory);
}

TEST_F(CudaDeviceTest, PeakBeginsAnewAtWhatIsInUse) {
  const std::unique_ptr<Device> device = OpenWithBudget(64 << 20);
  ASSERT_NE(device, nullptr);
  const absl::StatusOr<void*> kept = device->Allocate(4 << 20);
  const absl::StatusOr<void*> freed = device->Allocate(20 << 20);
  QST_ASSERT_OK(kept);
  QST_ASSERT_OK(freed);
  device->Free(*freed);
  EXPECT_EQ(device->peak_bytes(), 24 << 20);
  device->ResetPeak();
  EXPECT_EQ(device->peak_bytes(), 4 << 20);
  device->Free(*kept);
}

}  // namespace
}  // namespace cuda
}  // namespace qst
