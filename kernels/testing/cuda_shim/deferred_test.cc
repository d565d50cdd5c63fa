// What the deferred modes are for: programs that only work by luck.
#include <cublasLt.h>
#include <cuda_runtime.h>

#include <vector>

#include "gtest/gtest.h"
#include "kernels/testing/cuda_shim/stream_test_util.h"

namespace qst::cuda_shim {
namespace {

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
