#include "worker/stream/buffer.h"

#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/device_memory.h"
#include "kernels/testing/op_test_context.h"
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

TEST(BufferPoolTest, WhoWaitsForRoomGetsItWhenABufferComesBack) {
  auto pool = BufferPool::Create();
  SharedBuffer first = pool->Get(100).value();
  EXPECT_TRUE(pool->AwaitFewerInUse(2, absl::ZeroDuration()));
  SharedBuffer second = pool->Get(100).value();
  EXPECT_FALSE(pool->AwaitFewerInUse(2, absl::ZeroDuration()));
  std::thread returner([&] { first.reset(); });
  EXPECT_TRUE(pool->AwaitFewerInUse(2, absl::InfiniteDuration()));
  returner.join();
  EXPECT_FALSE(pool->AwaitFewerInUse(1, absl::Milliseconds(1)));
}

TEST(BufferPoolTest, APoolThatKeepsNoneFreesWhatIsFreeAndWhatComesBack) {
  auto pool = BufferPool::Create();
  SharedBuffer used = pool->Get(4096).value();
  pool->Get(8 << 20).value().reset();
  EXPECT_EQ(pool->allocated_bytes(), (8 << 20) + 4096);
  pool->KeepNone();
  EXPECT_EQ(pool->allocated_bytes(), 4096);
  used->data()[4095] = 1;
  used.reset();
  EXPECT_EQ(pool->allocated_bytes(), 0);
}

TEST(BufferPoolTest, NegativeAndImpossibleSizesAreErrors) {
  auto pool = BufferPool::Create();
  EXPECT_THAT(pool->Get(-1), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(pool->Get(std::int64_t{1} << 60), StatusIs(absl::StatusCode::kResourceExhausted));
}

using DeviceBufferTest = OpTest;

TEST_P(DeviceBufferTest, UsersOnDifferentStreamsFollowEachOther) {
  const OpContext writer = Context();
  auto pool = BufferPool::Create(writer);
  OpContext reader = writer;
  cuda::StreamPtr other;
  if (IsCuda()) {
    other = cuda::DeviceOf(*writer.stream).NewStream().value();
    reader.stream = other.get();
  }
  constexpr std::int64_t kBytes = 8 << 20;
  DeviceMemory copy = DeviceMemory::Allocate(reader, kBytes).value();
  std::vector<std::uint8_t> received(kBytes);
  for (int round = 0; round < 5; ++round) {
    SharedBuffer buffer = pool->Get(kBytes).value();
    EXPECT_EQ(buffer->is_on_device(), IsCuda());
    const std::vector<std::uint8_t> sent(kBytes, static_cast<std::uint8_t>(round));
    QST_ASSERT_OK(buffer->BeginUse(writer));
    QST_ASSERT_OK(Upload(writer, sent.data(), kBytes, buffer->data()));
    QST_ASSERT_OK(buffer->EndUse(writer));
    QST_ASSERT_OK(buffer->BeginUse(reader));
    QST_ASSERT_OK(CopyBytes(reader, buffer->data(), kBytes, copy.data()));
    QST_ASSERT_OK(buffer->EndUse(reader));
    QST_ASSERT_OK(buffer->WaitForLastUse());
    EXPECT_TRUE(buffer->IsLastUseDone().value());
    buffer.reset();
    QST_ASSERT_OK(Download(reader, copy.data(), kBytes, received.data()));
    EXPECT_EQ(received, sent);
  }
  QST_ASSERT_OK(Synchronize(writer));
}

QST_INSTANTIATE_OP_TEST(DeviceBufferTest);

}  // namespace
}  // namespace qst
