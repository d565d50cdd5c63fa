// Streams and events, with work run at once and with work deferred.
#include "kernels/testing/cuda_shim/stream.h"

#include <cublasLt.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <string>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/testing/cuda_shim/shim_test_util.h"

namespace qst::cuda_shim {
namespace {

__global__ void AddKernel(int* x, int n, int value) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < n) x[i] += value;
}

__global__ void ScaleKernel(int* x, int n, int factor) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < n) x[i] *= factor;
}

constexpr int kSize = 100;

void Add(int* x, int value, cudaStream_t stream) {
  const cudaLaunchConfig_t config = LaunchConfig(2, 64, 0, stream);
  ASSERT_EQ(cudaLaunchKernelEx(&config, AddKernel, x, kSize, value), cudaSuccess);
}

void Scale(int* x, int factor, cudaStream_t stream) {
  const cudaLaunchConfig_t config = LaunchConfig(2, 64, 0, stream);
  ASSERT_EQ(cudaLaunchKernelEx(&config, ScaleKernel, x, kSize, factor), cudaSuccess);
}

class Stream {
 public:
  explicit Stream(unsigned int flags = cudaStreamNonBlocking) {
    EXPECT_EQ(cudaStreamCreateWithFlags(&handle_, flags), cudaSuccess);
  }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  ~Stream() { EXPECT_EQ(cudaStreamDestroy(handle_), cudaSuccess); }
  operator cudaStream_t() const { return handle_; }  // NOLINT: stands for the handle

 private:
  cudaStream_t handle_ = nullptr;
};

class Event {
 public:
  explicit Event(unsigned int flags = cudaEventDisableTiming) {
    EXPECT_EQ(cudaEventCreateWithFlags(&handle_, flags), cudaSuccess);
  }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  ~Event() { EXPECT_EQ(cudaEventDestroy(handle_), cudaSuccess); }
  operator cudaEvent_t() const { return handle_; }  // NOLINT: stands for the handle

 private:
  cudaEvent_t handle_ = nullptr;
};

// Page-locked host memory.
class Pinned {
 public:
  explicit Pinned(int value) {
    EXPECT_EQ(cudaMallocHost(&data_, kSize * sizeof(int)), cudaSuccess);
    Fill(value);
  }
  Pinned(const Pinned&) = delete;
  Pinned& operator=(const Pinned&) = delete;
  ~Pinned() { EXPECT_EQ(cudaFreeHost(data_), cudaSuccess); }
  int* data() const { return data_; }
  void Fill(int value) { std::fill(data_, data_ + kSize, value); }
  std::vector<int> Get() const { return std::vector<int>(data_, data_ + kSize); }

 private:
  int* data_ = nullptr;
};

std::vector<int> AllOf(int value) { return std::vector<int>(kSize, value); }

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
  if (GetParam() == "0") GTEST_SKIP() << "in the eager mode the call itself would wait";
  Stream first;
  Stream second;
  bool is_sent = false;
  std::vector<int> order;
  ASSERT_EQ(Enqueue(
                first, StreamUse::kOwnDevice, [&] { order.push_back(2); }, [&] { return is_sent; }),
            cudaSuccess);
  ASSERT_EQ(Enqueue(second, StreamUse::kOwnDevice,
                    [&] {
                      is_sent = true;
                      order.push_back(1);
                    }),
            cudaSuccess);
  ASSERT_EQ(cudaStreamSynchronize(first), cudaSuccess);
  EXPECT_EQ(order, (std::vector<int>{1, 2}));
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

// ---- What the deferred modes are for: programs that only work by luck ----

TEST(CudaShimDeferredTest, MissingEventWaitGivesAWrongResult) {
  const ScopedEnvironment mode("QST_CUDA_SHIM_ASYNC", "late");
  Stream producer;
  Stream consumer;
  DeviceArray<int> x(AllOf(1));
  Pinned seen(0);
  Add(x.data(), 9, producer);
  ASSERT_EQ(cudaMemcpyAsync(seen.data(), x.data(), x.bytes(), cudaMemcpyDeviceToHost, consumer), cudaSuccess);
  ASSERT_EQ(cudaStreamSynchronize(consumer), cudaSuccess);
  EXPECT_EQ(seen.Get(), AllOf(1)) << "the producer has not run";
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
}

TEST(CudaShimDeferredTest, EarlyModeRunsOtherStreamsAhead) {
  const ScopedEnvironment mode("QST_CUDA_SHIM_ASYNC", "early");
  int runs_ahead = 0;
  for (int round = 0; round < 20; ++round) {
    Stream first;
    Stream second;
    DeviceArray<int> x(AllOf(1));
    Pinned seen(0);
    for (int i = 0; i < 3; ++i) Add(x.data(), 0, first);
    ASSERT_EQ(cudaMemcpyAsync(seen.data(), x.data(), x.bytes(), cudaMemcpyDeviceToHost, first), cudaSuccess);
    // Overwrites what the first stream has yet to read; nothing keeps it from doing so.
    Scale(x.data(), 0, second);
    ASSERT_EQ(cudaStreamSynchronize(first), cudaSuccess);
    runs_ahead += seen.Get() == AllOf(0) ? 1 : 0;
    ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  }
  EXPECT_GT(runs_ahead, 0);
}

TEST(CudaShimDeferredTest, MixedModeDoesBoth) {
  const ScopedEnvironment mode("QST_CUDA_SHIM_ASYNC", "1");
  int runs_ahead = 0;
  for (int round = 0; round < 40; ++round) {
    Stream first;
    Stream second;
    DeviceArray<int> x(AllOf(0));
    Add(x.data(), 1, first);
    Add(x.data(), 1, second);
    ASSERT_EQ(cudaStreamSynchronize(first), cudaSuccess);
    Pinned seen(0);
    Stream reader;
    ASSERT_EQ(cudaMemcpyAsync(seen.data(), x.data(), x.bytes(), cudaMemcpyDeviceToHost, reader), cudaSuccess);
    ASSERT_EQ(cudaStreamSynchronize(reader), cudaSuccess);
    runs_ahead += seen.Get() == AllOf(2) ? 1 : 0;
    ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  }
  EXPECT_GT(runs_ahead, 0);
  EXPECT_LT(runs_ahead, 40);
}

TEST(CudaShimDeferredTest, PinnedMemoryReusedTooEarlyShows) {
  const ScopedEnvironment mode("QST_CUDA_SHIM_ASYNC", "1");
  Stream stream;
  Pinned host(1);
  DeviceArray<int> x(kSize);
  ASSERT_EQ(cudaMemcpyAsync(x.data(), host.data(), x.bytes(), cudaMemcpyHostToDevice, stream), cudaSuccess);
  host.Fill(2);
  ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
  EXPECT_EQ(x.Get(), AllOf(2));
  ASSERT_EQ(cudaMemcpyAsync(host.data(), x.data(), x.bytes(), cudaMemcpyDeviceToHost, stream), cudaSuccess);
  host.Fill(3);
  EXPECT_EQ(host.Get(), AllOf(3)) << "nothing has been copied yet";
  ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
  EXPECT_EQ(host.Get(), AllOf(2));
}

TEST(CudaShimDeferredTest, MatrixProductsAreDeferred) {
  const ScopedEnvironment mode("QST_CUDA_SHIM_ASYNC", "late");
  Stream stream;
  DeviceArray<float> a(std::vector<float>(4, 1.0f));
  DeviceArray<float> d(std::vector<float>(4, -1.0f));
  cublasLtHandle_t handle = nullptr;
  cublasLtMatmulDesc_t desc = nullptr;
  cublasLtMatrixLayout_t layout = nullptr;
  ASSERT_EQ(cublasLtCreate(&handle), CUBLAS_STATUS_SUCCESS);
  ASSERT_EQ(cublasLtMatmulDescCreate(&desc, CUBLAS_COMPUTE_32F, CUDA_R_32F), CUBLAS_STATUS_SUCCESS);
  ASSERT_EQ(cublasLtMatrixLayoutCreate(&layout, CUDA_R_32F, 2, 2, 2), CUBLAS_STATUS_SUCCESS);
  const float one = 1.0f;
  const float zero = 0.0f;
  ASSERT_EQ(cublasLtMatmul(handle, desc, &one, a.data(), layout, a.data(), layout, &zero, d.data(), layout, d.data(),
                           layout, nullptr, nullptr, 0, stream),
            CUBLAS_STATUS_SUCCESS);
  // The stream is not one that the default stream, which copies, waits for.
  EXPECT_EQ(d.Get(), std::vector<float>(4, -1.0f));
  ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
  EXPECT_EQ(d.Get(), std::vector<float>(4, 2.0f));
  cublasLtMatrixLayoutDestroy(layout);
  cublasLtMatmulDescDestroy(desc);
  cublasLtDestroy(handle);
}

}  // namespace
}  // namespace qst::cuda_shim
