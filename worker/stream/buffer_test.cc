#include "worker/stream/buffer.h"

#include <vector>

#include "gtest/gtest.h"
#include "proto/support/status_matchers.h"

namespace qst {
namespace {

TEST(BufferPoolTest, ReturnedBuffersAreUsedAgain) {
  auto pool = BufferPool::Create();
  const std::uint8_t* address = nullptr;
  for (std::int64_t size : {1000000, 999000, 950000, 1000000}) {
    SharedBuffer buffer = pool->Get(size).value();
    EXPECT_EQ(static_cast<std::int64_t>(buffer->size()), size);
    if (address == nullptr) address = buffer->data();
    EXPECT_EQ(buffer->data(), address);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(buffer->data()) % 64, 0u);
  }
  EXPECT_LT(pool->peak_bytes(), 1010000);
}

TEST(BufferPoolTest, GrowingRequestsReplaceOutgrownBuffers) {
  auto pool = BufferPool::Create();
  for (std::int64_t size = 1 << 20; size <= 2 << 20; size += 1 << 17) EXPECT_TRUE(pool->Get(size).ok());
  EXPECT_EQ(pool->allocated_bytes(), 2 << 20);
}

TEST(BufferPoolTest, SmallRequestsDoNotTakeLargeBuffers) {
  auto pool = BufferPool::Create();
  pool->Get(8 << 20).value().reset();
  SharedBuffer small = pool->Get(64).value();
  SharedBuffer large = pool->Get(8 << 20).value();
  EXPECT_LE(pool->allocated_bytes(), (8 << 20) + 4096);
}

TEST(BufferPoolTest, BuffersOutliveTheirPool) {
  auto pool = BufferPool::Create();
  SharedBuffer buffer = pool->Get(100).value();
  pool.reset();
  buffer->data()[99] = 1;
  buffer.reset();
}

TEST(BufferPoolTest, NegativeAndImpossibleSizesAreErrors) {
  auto pool = BufferPool::Create();
  EXPECT_THAT(pool->Get(-1), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(pool->Get(std::int64_t{1} << 60), StatusIs(absl::StatusCode::kResourceExhausted));
}

}  // namespace
}  // namespace qst
