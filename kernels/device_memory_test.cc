#include "kernels/device_memory.h"

#include <cstdint>
#include <numeric>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/testing/op_test_context.h"
#include "proto/support/status_matchers.h"

namespace qst {
namespace {

using DeviceMemoryTest = OpTest;

TEST_P(DeviceMemoryTest, BytesComeBackAsTheyWent) {
  const OpContext ctx = Context();
  // Larger than the staging pieces that host memory goes through, and no multiple of them.
  for (const std::int64_t n : {0, 1, 1000, 5'000'001}) {
    std::vector<std::uint8_t> sent(n);
    std::iota(sent.begin(), sent.end(), 7);
    absl::StatusOr<DeviceMemory> memory = DeviceMemory::CopyOf(ctx, sent.data(), n);
    QST_ASSERT_OK(memory);
    std::vector<std::uint8_t> changed(n, 0xee);
    QST_ASSERT_OK(Download(ctx, memory->data(), n, changed.data()));
    EXPECT_EQ(changed, sent);
  }
}

TEST_P(DeviceMemoryTest, TheHostMayChangeItsBytesAfterAnUpload) {
  const OpContext ctx = Context();
  absl::StatusOr<DeviceMemory> memory = DeviceMemory::Allocate(ctx, 64);
  QST_ASSERT_OK(memory);
  std::vector<std::uint8_t> sent(64, 1);
  QST_ASSERT_OK(Upload(ctx, sent.data(), 64, memory->data()));
  sent.assign(64, 2);
  std::vector<std::uint8_t> received(64);
  QST_ASSERT_OK(Download(ctx, memory->data(), 64, received.data()));
  EXPECT_EQ(received, std::vector<std::uint8_t>(64, 1));
}

TEST_P(DeviceMemoryTest, FillsAndCopiesKeepTheirOrder) {
  const OpContext ctx = Context();
  absl::StatusOr<DeviceMemory> a = DeviceMemory::Allocate(ctx, 100);
  absl::StatusOr<DeviceMemory> b = DeviceMemory::Allocate(ctx, 100);
  QST_ASSERT_OK(a);
  QST_ASSERT_OK(b);
  const std::vector<std::uint8_t> ones(100, 1);
  QST_ASSERT_OK(Upload(ctx, ones.data(), 100, a->data()));
  QST_ASSERT_OK(CopyBytes(ctx, a->data(), 100, b->data()));
  QST_ASSERT_OK(FillZero(ctx, a->data(), 100));
  absl::StatusOr<DeviceEvent> event = DeviceEvent::Create(ctx);
  QST_ASSERT_OK(event);
  QST_ASSERT_OK(event->Record(ctx));
  QST_ASSERT_OK(event->MakeWait(ctx));
  QST_ASSERT_OK(event->Wait());
  std::vector<std::uint8_t> received(100);
  QST_ASSERT_OK(Download(ctx, b->data(), 100, received.data()));
  EXPECT_EQ(received, ones);
  QST_ASSERT_OK(Download(ctx, a->data(), 100, received.data()));
  EXPECT_EQ(received, std::vector<std::uint8_t>(100, 0));
}

TEST_P(DeviceMemoryTest, MovesAlongWithItsBytes) {
  const OpContext ctx = Context();
  absl::StatusOr<DeviceMemory> made = DeviceMemory::Allocate(ctx, 8);
  QST_ASSERT_OK(made);
  void* const data = made->data();
  DeviceMemory moved = *std::move(made);
  EXPECT_EQ(moved.data(), data);
  EXPECT_EQ(moved.size_bytes(), 8);
  DeviceMemory other;
  other = std::move(moved);
  EXPECT_EQ(other.data(), data);
}

QST_INSTANTIATE_OP_TEST(DeviceMemoryTest);

}  // namespace
}  // namespace qst
