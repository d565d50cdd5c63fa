// Capturing streams into graphs, and launching those.
#include <cuda_runtime.h>

#include <string>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/testing/cuda_shim/shim_test_util.h"

namespace qst::cuda_shim {
namespace {

__global__ void MulAddKernel(int* x, int n, int factor, int addend) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < n) x[i] = x[i] * factor + addend;
}

constexpr int kSize = 50;

cudaError_t MulAdd(int* x, int factor, int addend, cudaStream_t stream) {
  const cudaLaunchConfig_t config = LaunchConfig(1, 64, 0, stream);
  return cudaLaunchKernelEx(&config, MulAddKernel, x, kSize, factor, addend);
}

std::vector<int> AllOf(int value) { return std::vector<int>(kSize, value); }

class CudaShimGraphTest : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    for (cudaStream_t* stream : {&a_, &b_}) {
      ASSERT_EQ(cudaStreamCreateWithFlags(stream, cudaStreamNonBlocking), cudaSuccess);
    }
    for (cudaEvent_t* event : {&fork_, &join_}) {
      ASSERT_EQ(cudaEventCreateWithFlags(event, cudaEventDisableTiming), cudaSuccess);
    }
  }
  void TearDown() override {
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    for (const cudaStream_t stream : {a_, b_}) EXPECT_EQ(cudaStreamDestroy(stream), cudaSuccess);
    for (const cudaEvent_t event : {fork_, join_}) EXPECT_EQ(cudaEventDestroy(event), cudaSuccess);
    cudaGetLastError();
  }

  void Begin(cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal) {
    ASSERT_EQ(cudaStreamBeginCapture(a_, mode), cudaSuccess);
  }
  // Ends a capture that must fail.
  cudaError_t End() {
    cudaGraph_t graph = nullptr;
    const cudaError_t error = cudaStreamEndCapture(a_, &graph);
    EXPECT_EQ(graph, nullptr);
    return error;
  }
  // Ends a capture that must succeed.
  cudaGraphExec_t EndAndInstantiate(std::size_t num_nodes) {
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t exec = nullptr;
    EXPECT_EQ(cudaStreamEndCapture(a_, &graph), cudaSuccess);
    std::size_t nodes = 0;
    EXPECT_EQ(cudaGraphGetNodes(graph, nullptr, &nodes), cudaSuccess);
    EXPECT_EQ(nodes, num_nodes);
    EXPECT_EQ(cudaGraphInstantiate(&exec, graph, 0), cudaSuccess);
    EXPECT_EQ(cudaGraphDestroy(graph), cudaSuccess);
    return exec;
  }

  ScopedEnvironment mode_{"QST_CUDA_SHIM_ASYNC", GetParam()};
  cudaStream_t a_ = nullptr;
  cudaStream_t b_ = nullptr;
  cudaEvent_t fork_ = nullptr;
  cudaEvent_t join_ = nullptr;
};

INSTANTIATE_TEST_SUITE_P(Modes, CudaShimGraphTest, ::testing::Values("0", "1", "late", "early"));

TEST_P(CudaShimGraphTest, CaptureRunsNothingAndEachLaunchRunsAll) {
  DeviceArray<int> x(AllOf(1));
  Begin();
  EXPECT_EQ(MulAdd(x.data(), 2, 0, a_), cudaSuccess);
  EXPECT_EQ(MulAdd(x.data(), 1, 3, a_), cudaSuccess);
  const cudaGraphExec_t exec = EndAndInstantiate(2);
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  EXPECT_EQ(x.Get(), AllOf(1));
  for (int i = 0; i < 3; ++i) ASSERT_EQ(cudaGraphLaunch(exec, i == 1 ? b_ : a_), cudaSuccess);
  ASSERT_EQ(cudaStreamSynchronize(a_), cudaSuccess);
  EXPECT_EQ(x.Get(), AllOf(29)) << "launches of one graph do not overlap, even in two streams";
  EXPECT_EQ(cudaGraphExecDestroy(exec), cudaSuccess);
}

TEST_P(CudaShimGraphTest, LaunchesComeAfterEarlierWorkAndBeforeLaterWork) {
  DeviceArray<int> x(AllOf(1));
  Begin();
  EXPECT_EQ(MulAdd(x.data(), 10, 0, a_), cudaSuccess);
  const cudaGraphExec_t exec = EndAndInstantiate(1);
  EXPECT_EQ(MulAdd(x.data(), 1, 1, b_), cudaSuccess);
  ASSERT_EQ(cudaGraphLaunch(exec, b_), cudaSuccess);
  EXPECT_EQ(MulAdd(x.data(), 1, 5, b_), cudaSuccess);
  // What it launched stays, when the graph goes.
  EXPECT_EQ(cudaGraphExecDestroy(exec), cudaSuccess);
  ASSERT_EQ(cudaStreamSynchronize(b_), cudaSuccess);
  EXPECT_EQ(x.Get(), AllOf(25));
}

TEST_P(CudaShimGraphTest, CapturedCopiesReadMemoryAtLaunch) {
  int* host = nullptr;
  ASSERT_EQ(cudaMallocHost(&host, kSize * sizeof(int)), cudaSuccess);
  DeviceArray<int> x(kSize);
  Begin();
  EXPECT_EQ(cudaMemcpyAsync(x.data(), host, x.bytes(), cudaMemcpyHostToDevice, a_), cudaSuccess);
  EXPECT_EQ(cudaMemsetAsync(x.data(), 0, sizeof(int), a_), cudaSuccess);
  const cudaGraphExec_t exec = EndAndInstantiate(2);
  for (int value = 1; value < 3; ++value) {
    for (int i = 0; i < kSize; ++i) host[i] = value;
    ASSERT_EQ(cudaGraphLaunch(exec, a_), cudaSuccess);
    ASSERT_EQ(cudaStreamSynchronize(a_), cudaSuccess);
    std::vector<int> expected = AllOf(value);
    expected[0] = 0;
    EXPECT_EQ(x.Get(), expected);
  }
  EXPECT_EQ(cudaGraphExecDestroy(exec), cudaSuccess);
  EXPECT_EQ(cudaFreeHost(host), cudaSuccess);
}

TEST_P(CudaShimGraphTest, StreamsForkIntoACaptureAndJoinIt) {
  DeviceArray<int> x(AllOf(1));
  DeviceArray<int> y(AllOf(2));
  Begin();
  EXPECT_EQ(MulAdd(x.data(), 3, 0, a_), cudaSuccess);
  ASSERT_EQ(cudaEventRecord(fork_, a_), cudaSuccess);
  ASSERT_EQ(cudaStreamWaitEvent(b_, fork_), cudaSuccess);
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  ASSERT_EQ(cudaStreamIsCapturing(b_, &status), cudaSuccess);
  EXPECT_EQ(status, cudaStreamCaptureStatusActive);
  EXPECT_EQ(cudaMemcpyAsync(y.data(), x.data(), x.bytes(), cudaMemcpyDeviceToDevice, b_), cudaSuccess);
  ASSERT_EQ(cudaEventRecord(join_, b_), cudaSuccess);
  ASSERT_EQ(cudaStreamWaitEvent(a_, join_), cudaSuccess);
  EXPECT_EQ(MulAdd(x.data(), 0, 7, a_), cudaSuccess);
  const cudaGraphExec_t exec = EndAndInstantiate(3);
  ASSERT_EQ(cudaStreamIsCapturing(b_, &status), cudaSuccess);
  EXPECT_EQ(status, cudaStreamCaptureStatusNone);
  ASSERT_EQ(cudaGraphLaunch(exec, a_), cudaSuccess);
  ASSERT_EQ(cudaStreamSynchronize(a_), cudaSuccess);
  EXPECT_EQ(x.Get(), AllOf(7));
  EXPECT_EQ(y.Get(), AllOf(3));
  EXPECT_EQ(cudaGraphExecDestroy(exec), cudaSuccess);
}

TEST_P(CudaShimGraphTest, ForkedStreamsMustJoin) {
  DeviceArray<int> x(AllOf(1));
  Begin();
  ASSERT_EQ(cudaEventRecord(fork_, a_), cudaSuccess);
  ASSERT_EQ(cudaStreamWaitEvent(b_, fork_), cudaSuccess);
  EXPECT_EQ(MulAdd(x.data(), 3, 0, b_), cudaSuccess);
  cudaGraph_t graph = nullptr;
  EXPECT_EQ(cudaStreamEndCapture(b_, &graph), cudaErrorStreamCaptureUnmatched);
  EXPECT_EQ(End(), cudaErrorStreamCaptureInvalidated);
  Begin();
  ASSERT_EQ(cudaEventRecord(fork_, a_), cudaSuccess);
  ASSERT_EQ(cudaStreamWaitEvent(b_, fork_), cudaSuccess);
  EXPECT_EQ(MulAdd(x.data(), 3, 0, b_), cudaSuccess);
  EXPECT_EQ(End(), cudaErrorStreamCaptureUnjoined);
  // Both are ordinary streams again.
  EXPECT_EQ(MulAdd(x.data(), 3, 0, a_), cudaSuccess);
  ASSERT_EQ(cudaStreamSynchronize(a_), cudaSuccess);
  EXPECT_EQ(MulAdd(x.data(), 3, 0, b_), cudaSuccess);
  ASSERT_EQ(cudaStreamSynchronize(b_), cudaSuccess);
  EXPECT_EQ(x.Get(), AllOf(9));
}

TEST_P(CudaShimGraphTest, CallsThatACaptureForbidsFailAndSpoilIt) {
  DeviceArray<int> x(AllOf(1));
  void* memory = nullptr;
  float on_host = 0.0f;
  const std::vector<cudaError_t (*)(cudaStream_t, int*, void**, float*)> calls = {
      [](cudaStream_t s, int*, void**, float*) { return cudaStreamSynchronize(s); },
      [](cudaStream_t s, int*, void**, float*) { return cudaStreamQuery(s); },
      [](cudaStream_t, int*, void**, float*) { return cudaDeviceSynchronize(); },
      [](cudaStream_t, int*, void** m, float*) { return cudaMalloc(m, 10); },
      [](cudaStream_t, int* x, void**, float*) { return cudaFree(x); },
      [](cudaStream_t, int*, void** m, float*) { return cudaMallocHost(m, 10); },
      [](cudaStream_t, int* x, void**, float*) { return cudaMemset(x, 0, 4); },
      [](cudaStream_t, int* x, void**, float* h) { return cudaMemcpy(h, x, 4, cudaMemcpyDeviceToHost); },
  };
  for (std::size_t i = 0; i < calls.size(); ++i) {
    Begin();
    EXPECT_EQ(MulAdd(x.data(), 3, 0, a_), cudaSuccess);
    EXPECT_EQ(calls[i](a_, x.data(), &memory, &on_host), cudaErrorStreamCaptureUnsupported) << i;
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    ASSERT_EQ(cudaStreamIsCapturing(a_, &status), cudaSuccess);
    EXPECT_EQ(status, cudaStreamCaptureStatusInvalidated) << i;
    EXPECT_EQ(MulAdd(x.data(), 3, 0, a_), cudaErrorStreamCaptureInvalidated);
    EXPECT_EQ(End(), cudaErrorStreamCaptureInvalidated);
  }
  EXPECT_EQ(x.Get(), AllOf(1));
}

TEST_P(CudaShimGraphTest, ModeDecidesWhomACaptureDisturbs) {
  void* memory = nullptr;
  Begin(cudaStreamCaptureModeRelaxed);
  EXPECT_EQ(cudaMalloc(&memory, 10), cudaSuccess);
  EXPECT_EQ(cudaFree(memory), cudaSuccess);
  EXPECT_EQ(cudaGraphExecDestroy(EndAndInstantiate(0)), cudaSuccess);

  const auto malloc_elsewhere = [&] {
    cudaError_t error = cudaSuccess;
    std::thread([&] { error = cudaMalloc(&memory, 10); }).join();
    return error;
  };
  Begin(cudaStreamCaptureModeThreadLocal);
  EXPECT_EQ(malloc_elsewhere(), cudaSuccess);
  EXPECT_EQ(cudaMallocHost(&memory, 10), cudaErrorStreamCaptureUnsupported);
  EXPECT_EQ(End(), cudaErrorStreamCaptureInvalidated);
  EXPECT_EQ(cudaFree(memory), cudaSuccess);

  Begin(cudaStreamCaptureModeGlobal);
  EXPECT_EQ(malloc_elsewhere(), cudaErrorStreamCaptureUnsupported);
  EXPECT_EQ(End(), cudaErrorStreamCaptureInvalidated);

  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
  Begin(cudaStreamCaptureModeGlobal);
  ASSERT_EQ(cudaThreadExchangeStreamCaptureMode(&mode), cudaSuccess);
  EXPECT_EQ(cudaMalloc(&memory, 10), cudaSuccess);
  EXPECT_EQ(cudaFree(memory), cudaSuccess);
  ASSERT_EQ(cudaThreadExchangeStreamCaptureMode(&mode), cudaSuccess);
  EXPECT_EQ(mode, cudaStreamCaptureModeRelaxed);
  EXPECT_EQ(cudaGraphExecDestroy(EndAndInstantiate(0)), cudaSuccess);
}

TEST_P(CudaShimGraphTest, CapturesAndOtherWorkDoNotMix) {
  DeviceArray<int> x(AllOf(1));
  ASSERT_EQ(cudaEventRecord(fork_, b_), cudaSuccess);
  Begin();
  EXPECT_EQ(cudaStreamWaitEvent(a_, fork_), cudaErrorStreamCaptureIsolation);
  EXPECT_EQ(End(), cudaErrorStreamCaptureInvalidated);

  Begin();
  ASSERT_EQ(cudaEventRecord(fork_, a_), cudaSuccess);
  EXPECT_EQ(cudaEventQuery(fork_), cudaErrorCapturedEvent);
  EXPECT_EQ(cudaEventSynchronize(fork_), cudaErrorCapturedEvent);
  EXPECT_EQ(cudaStreamWaitEvent(nullptr, fork_), cudaErrorStreamCaptureImplicit);
  ASSERT_EQ(cudaStreamBeginCapture(b_, cudaStreamCaptureModeGlobal), cudaSuccess);
  EXPECT_EQ(cudaStreamWaitEvent(b_, fork_), cudaErrorStreamCaptureMerge);
  cudaGraph_t graph = nullptr;
  EXPECT_EQ(cudaStreamEndCapture(b_, &graph), cudaSuccess);
  EXPECT_EQ(cudaGraphDestroy(graph), cudaSuccess);
  EXPECT_EQ(cudaGraphExecDestroy(EndAndInstantiate(0)), cudaSuccess);
  EXPECT_EQ(cudaStreamWaitEvent(b_, fork_), cudaErrorStreamCaptureIsolation) << "the capture has ended";
}

TEST_P(CudaShimGraphTest, DefaultStreamCannotBeUsedBesideACapturingBlockingStream) {
  DeviceArray<int> x(AllOf(1));
  cudaStream_t blocking = nullptr;
  ASSERT_EQ(cudaStreamCreate(&blocking), cudaSuccess);
  ASSERT_EQ(cudaStreamBeginCapture(blocking, cudaStreamCaptureModeRelaxed), cudaSuccess);
  EXPECT_EQ(MulAdd(x.data(), 2, 0, nullptr), cudaErrorStreamCaptureImplicit);
  EXPECT_EQ(cudaStreamSynchronize(nullptr), cudaErrorStreamCaptureImplicit);
  cudaGraph_t graph = nullptr;
  EXPECT_EQ(cudaStreamEndCapture(blocking, &graph), cudaSuccess);
  EXPECT_EQ(cudaGraphDestroy(graph), cudaSuccess);
  EXPECT_EQ(MulAdd(x.data(), 2, 0, nullptr), cudaSuccess);
  EXPECT_EQ(cudaStreamDestroy(blocking), cudaSuccess);
  EXPECT_EQ(x.Get(), AllOf(2));
}

TEST_P(CudaShimGraphTest, BadCallsGiveCudasErrors) {
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  EXPECT_EQ(cudaStreamBeginCapture(nullptr, cudaStreamCaptureModeGlobal), cudaErrorStreamCaptureUnsupported);
  EXPECT_EQ(cudaStreamEndCapture(a_, &graph), cudaErrorIllegalState);
  Begin();
  EXPECT_EQ(cudaStreamBeginCapture(a_, cudaStreamCaptureModeGlobal), cudaErrorIllegalState);
  EXPECT_EQ(cudaStreamEndCapture(a_, nullptr), cudaErrorInvalidValue);
  cudaError_t from_elsewhere = cudaSuccess;
  std::thread([&] { from_elsewhere = cudaStreamEndCapture(a_, &graph); }).join();
  EXPECT_EQ(from_elsewhere, cudaErrorStreamCaptureWrongThread);
  EXPECT_EQ(cudaGraphExecDestroy(EndAndInstantiate(0)), cudaSuccess);
  EXPECT_EQ(cudaGraphInstantiate(&exec, nullptr, 0), cudaErrorInvalidValue);
  EXPECT_EQ(cudaGraphLaunch(nullptr, a_), cudaErrorInvalidValue);
  EXPECT_EQ(cudaGraphDestroy(nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(cudaGraphExecDestroy(nullptr), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace qst::cuda_shim
