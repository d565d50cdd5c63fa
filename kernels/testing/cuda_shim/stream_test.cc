// Streams and events, with work run at once and with work deferred.
#include "kernels/testing/cuda_shim/stream.h"

#include <cuda_runtime.h>

#include <string>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/testing/cuda_shim/shim_test_util.h"
#include "kernels/testing/cuda_shim/stream_test_util.h"

namespace qst::cuda_shim {
namespace {

// Every mode must give the results that a device may give.
class CudaShimStreamTest : public ::testing::TestWithParam<std::string> {
 protected:
  ScopedEnvironment mode_{"QST_CUDA_SHIM_ASYNC", GetParam()};
};

INSTANTIATE_TEST_SUITE_P(Modes, CudaShimStreamTest, ::testing::Values("0", "1", "late", "early"));

TEST_P(CudaShimStreamTest, WorkOfAStreamRunsInOrder) {
  Stream stream;
  Pinned host(1);
  DeviceArray<int> x(kSize);
  ASSERT_EQ(cudaMemcpyAsync(x.data(), host.data(), x.bytes(), cudaMemcpyHostToDevice, stream), cudaSuccess);
  for (int i = 0; i < 5; ++i) {
    Add(x.data(), i, stream);
    Scale(x.data(), 2, stream);
  }
  ASSERT_EQ(cudaMemcpyAsync(host.data(), x.data(), x.bytes(), cudaMemcpyDeviceToHost, stream), cudaSuccess);
  ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
  EXPECT_EQ(host.Get(), AllOf(32 + 0 * 32 + 1 * 16 + 2 * 8 + 3 * 4 + 4 * 2));
}

TEST_P(CudaShimStreamTest, EventsOrderStreams) {
  for (int round = 0; round < 20; ++round) {
    Stream producer;
    Stream consumer;
    Event ready;
    Event consumed;
    DeviceArray<int> x(AllOf(1));
    Pinned seen(0);
    Add(x.data(), 9, producer);
    ASSERT_EQ(cudaEventRecord(ready, producer), cudaSuccess);
    ASSERT_EQ(cudaStreamWaitEvent(consumer, ready), cudaSuccess);
    ASSERT_EQ(cudaMemcpyAsync(seen.data(), x.data(), x.bytes(), cudaMemcpyDeviceToHost, consumer), cudaSuccess);
    ASSERT_EQ(cudaEventRecord(consumed, consumer), cudaSuccess);
    ASSERT_EQ(cudaStreamWaitEvent(producer, consumed), cudaSuccess);
    Scale(x.data(), 0, producer);
    ASSERT_EQ(cudaStreamSynchronize(round % 2 == 0 ? producer : consumer), cudaSuccess);
    EXPECT_EQ(seen.Get(), AllOf(10));
  }
}

TEST_P(CudaShimStreamTest, AnEventStandsForItsLastRecordOnly) {
  Stream first;
  Stream second;
  Event event;
  DeviceArray<int> x(AllOf(0));
  Add(x.data(), 1, first);
  ASSERT_EQ(cudaEventRecord(event, first), cudaSuccess);
  Add(x.data(), 1, first);
  ASSERT_EQ(cudaEventRecord(event, first), cudaSuccess);
  ASSERT_EQ(cudaStreamWaitEvent(second, event), cudaSuccess);
  // A record after the wait changes nothing for those who wait already.
  ASSERT_EQ(cudaEventRecord(event, second), cudaSuccess);
  Scale(x.data(), 10, second);
  ASSERT_EQ(cudaStreamSynchronize(second), cudaSuccess);
  EXPECT_EQ(x.Get(), AllOf(20));
}

TEST_P(CudaShimStreamTest, EventNeverRecordedHoldsUpNobody) {
  Stream stream;
  Event event;
  EXPECT_EQ(cudaEventQuery(event), cudaSuccess);
  EXPECT_EQ(cudaEventSynchronize(event), cudaSuccess);
  EXPECT_EQ(cudaStreamWaitEvent(stream, event), cudaSuccess);
  EXPECT_EQ(cudaStreamQuery(stream), cudaSuccess);
}

TEST_P(CudaShimStreamTest, AskingOftenEnoughEnds) {
  Stream stream;
  Event event;
  DeviceArray<int> x(AllOf(0));
  for (int i = 0; i < 10; ++i) Add(x.data(), 1, stream);
  ASSERT_EQ(cudaEventRecord(event, stream), cudaSuccess);
  Add(x.data(), 1, stream);
  cudaError_t status = cudaErrorNotReady;
  for (int i = 0; i < 100 && status == cudaErrorNotReady; ++i) status = cudaEventQuery(event);
  EXPECT_EQ(status, cudaSuccess);
  status = cudaErrorNotReady;
  for (int i = 0; i < 100 && status == cudaErrorNotReady; ++i) status = cudaStreamQuery(stream);
  EXPECT_EQ(status, cudaSuccess);
  cudaGetLastError();
}

TEST_P(CudaShimStreamTest, DefaultStreamWaitsForBlockingStreamsAndTheyForIt) {
  Stream blocking(cudaStreamDefault);
  DeviceArray<int> x(AllOf(1));
  Add(x.data(), 1, blocking);
  Scale(x.data(), 10, nullptr);
  Add(x.data(), 3, blocking);
  ASSERT_EQ(cudaStreamSynchronize(blocking), cudaSuccess);
  EXPECT_EQ(x.Get(), AllOf(23));
  Add(x.data(), 1, blocking);
  // Blocking calls use the default stream.
  EXPECT_EQ(x.Get(), AllOf(24));
}

TEST_P(CudaShimStreamTest, HostFunctionsRunInOrder) {
  Stream stream;
  Pinned host(3);
  DeviceArray<int> x(AllOf(0));
  ASSERT_EQ(cudaLaunchHostFunc(
                stream, [](void* user_data) { static_cast<Pinned*>(user_data)->Fill(4); }, &host),
            cudaSuccess);
  ASSERT_EQ(cudaMemcpyAsync(x.data(), host.data(), x.bytes(), cudaMemcpyHostToDevice, stream), cudaSuccess);
  ASSERT_EQ(cudaLaunchHostFunc(
                stream, [](void* user_data) { static_cast<Pinned*>(user_data)->Fill(5); }, &host),
            cudaSuccess);
  ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
  EXPECT_EQ(x.Get(), AllOf(4));
  EXPECT_EQ(host.Get(), AllOf(5));
}

TEST_P(CudaShimStreamTest, PageableMemoryIsReadAtOnceAndWrittenBeforeTheCallReturns) {
  Stream stream;
  std::vector<int> host = AllOf(6);
  DeviceArray<int> x(kSize);
  ASSERT_EQ(cudaMemcpyAsync(x.data(), host.data(), x.bytes(), cudaMemcpyHostToDevice, stream), cudaSuccess);
  host = AllOf(0);
  Add(x.data(), 1, stream);
  ASSERT_EQ(cudaMemcpyAsync(host.data(), x.data(), x.bytes(), cudaMemcpyDeviceToHost, stream), cudaSuccess);
  EXPECT_EQ(host, AllOf(7));
}

TEST_P(CudaShimStreamTest, FreeingWaitsForWork) {
  Stream stream;
  Pinned host(0);
  int* memory = nullptr;
  ASSERT_EQ(cudaMalloc(&memory, kSize * sizeof(int)), cudaSuccess);
  ASSERT_EQ(cudaMemsetAsync(memory, 0, kSize * sizeof(int), stream), cudaSuccess);
  Add(memory, 8, stream);
  ASSERT_EQ(cudaMemcpyAsync(host.data(), memory, kSize * sizeof(int), cudaMemcpyDeviceToHost, stream), cudaSuccess);
  ASSERT_EQ(cudaFree(memory), cudaSuccess);
  EXPECT_EQ(host.Get(), AllOf(8));
}

TEST_P(CudaShimStreamTest, WorkOfADestroyedStreamStillRuns) {
  DeviceArray<int> x(AllOf(0));
  {
    Stream stream;
    Add(x.data(), 1, stream);
  }
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  EXPECT_EQ(x.Get(), AllOf(1));
}

TEST_P(CudaShimStreamTest, EventsMeasureTime) {
  Stream stream;
  Event start(cudaEventDefault);
  Event end(cudaEventDefault);
  Event untimed;
  DeviceArray<int> x(AllOf(0));
  float milliseconds = -1.0f;
  EXPECT_EQ(cudaEventElapsedTime(&milliseconds, start, end), cudaErrorInvalidResourceHandle) << "never recorded";
  ASSERT_EQ(cudaEventRecord(start, stream), cudaSuccess);
  Add(x.data(), 1, stream);
  ASSERT_EQ(cudaEventRecord(end, stream), cudaSuccess);
  ASSERT_EQ(cudaEventRecord(untimed, stream), cudaSuccess);
  ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
  ASSERT_EQ(cudaEventElapsedTime(&milliseconds, start, end), cudaSuccess);
  EXPECT_GE(milliseconds, 0.0f);
  EXPECT_EQ(cudaEventElapsedTime(&milliseconds, start, untimed), cudaErrorInvalidResourceHandle);
  cudaGetLastError();
}

TEST_P(CudaShimStreamTest, OsThreadsMayUseStreamsOfTheirOwn) {
  constexpr int kThreads = 3;
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([t] {
      Stream stream;
      Pinned host(t);
      DeviceArray<int> x(kSize);
      for (int round = 0; round < 10; ++round) {
        EXPECT_EQ(cudaMemcpyAsync(x.data(), host.data(), x.bytes(), cudaMemcpyHostToDevice, stream), cudaSuccess);
        Add(x.data(), 1, stream);
        EXPECT_EQ(cudaMemcpyAsync(host.data(), x.data(), x.bytes(), cudaMemcpyDeviceToHost, stream), cudaSuccess);
        EXPECT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
      }
      EXPECT_EQ(host.Get(), AllOf(t + 10));
    });
  }
  for (std::thread& thread : threads) thread.join();
}

// Other stand-ins enqueue work that depends on somebody else, e.g. on a peer of a communicator.
TEST_P(CudaShimStreamTest, WorkWaitsUntilItIsReady) {
  Stream first;
  Stream second;
  bool is_sent = false;
  std::vector<int> order;
  ASSERT_EQ(Enqueue(
                first, StreamUse::kOwnDevice, [&] { order.push_back(2); }, [&] { return is_sent; }),
            cudaSuccess);
  // Nobody is held up by it, in the eager mode either.
  cudaEvent_t event = nullptr;
  ASSERT_EQ(cudaEventCreate(&event), cudaSuccess);
  ASSERT_EQ(cudaEventRecord(event, first), cudaSuccess);
  EXPECT_EQ(cudaEventQuery(event), cudaErrorNotReady);
  ASSERT_EQ(Enqueue(second, StreamUse::kOwnDevice,
                    [&] {
                      is_sent = true;
                      order.push_back(1);
                    }),
            cudaSuccess);
  ASSERT_EQ(cudaEventSynchronize(event), cudaSuccess);
  EXPECT_EQ(order, (std::vector<int>{1, 2}));
  ASSERT_EQ(cudaEventDestroy(event), cudaSuccess);
}

TEST_P(CudaShimStreamTest, HandlesThatAreNoneAreRefused) {
  cudaStream_t gone = nullptr;
  ASSERT_EQ(cudaStreamCreate(&gone), cudaSuccess);
  ASSERT_EQ(cudaStreamDestroy(gone), cudaSuccess);
  cudaEvent_t no_event = nullptr;
  Event event;
  const cudaLaunchConfig_t config = LaunchConfig(1, 1, 0, gone);
  EXPECT_EQ(cudaLaunchKernelEx(&config, AddKernel, static_cast<int*>(nullptr), 0, 0), cudaErrorInvalidResourceHandle);
  EXPECT_EQ(cudaStreamSynchronize(gone), cudaErrorInvalidResourceHandle);
  EXPECT_EQ(cudaStreamDestroy(gone), cudaErrorInvalidResourceHandle);
  EXPECT_EQ(cudaStreamDestroy(nullptr), cudaErrorInvalidResourceHandle);
  EXPECT_EQ(cudaEventRecord(event, gone), cudaErrorInvalidResourceHandle);
  EXPECT_EQ(cudaEventRecord(no_event), cudaErrorInvalidResourceHandle);
  EXPECT_EQ(cudaStreamWaitEvent(nullptr, no_event), cudaErrorInvalidResourceHandle);
  EXPECT_EQ(cudaEventQuery(no_event), cudaErrorInvalidResourceHandle);
  EXPECT_EQ(cudaStreamCreate(nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(cudaEventCreateWithFlags(nullptr, 0), cudaErrorInvalidValue);
  EXPECT_EQ(cudaLaunchHostFunc(nullptr, nullptr, nullptr), cudaErrorInvalidValue);
  cudaGetLastError();
}

TEST(CudaShimStreamAttributesTest, PrioritiesAreKeptInTheirRange) {
  int least = -1;
  int greatest = 1;
  ASSERT_EQ(cudaDeviceGetStreamPriorityRange(&least, &greatest), cudaSuccess);
  EXPECT_LT(greatest, least);
  cudaStream_t stream = nullptr;
  ASSERT_EQ(cudaStreamCreateWithPriority(&stream, cudaStreamNonBlocking, -100), cudaSuccess);
  int priority = 0;
  unsigned int flags = 0;
  int device = -1;
  EXPECT_EQ(cudaStreamGetPriority(stream, &priority), cudaSuccess);
  EXPECT_EQ(cudaStreamGetFlags(stream, &flags), cudaSuccess);
  EXPECT_EQ(cudaStreamGetDevice(stream, &device), cudaSuccess);
  EXPECT_EQ(priority, greatest);
  EXPECT_EQ(flags, cudaStreamNonBlocking);
  EXPECT_EQ(device, 0);
  EXPECT_EQ(cudaStreamDestroy(stream), cudaSuccess);
}

}  // namespace
}  // namespace qst::cuda_shim
