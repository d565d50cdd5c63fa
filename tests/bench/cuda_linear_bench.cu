#include <cublasLt.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kernels/cuda/check.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/numeric.cuh"
#include "kernels/cuda/quant4.h"
#include "kernels/cuda/stream.cuh"
#include "kernels/device_memory.h"
#include "kernels/ops.h"
#include "kernels/quant/codes.h"
#include "proto/support/status_macros.h"
#include "tests/bench/cuda_linear_bench.h"

namespace qst {
namespace {

using cuda::BF16;

constexpr int kWindows = 20;
// Written between windows: longer than any cache, and long enough for the host to enqueue a window meanwhile.
constexpr std::int64_t kFlushBytes = std::int64_t{1} << 30;
// Weights of one shape take at least this much together, more than any GPU's cache.
constexpr std::int64_t kRotationBytes = std::int64_t{256} << 20;
constexpr std::int64_t kBlasWorkspaceBytes = std::int64_t{32} << 20;
constexpr int kBlockSize = 64;
constexpr int kNestedBlockSize = 256;
constexpr int kFillThreads = 256;

__device__ __forceinline__ std::uint32_t Hash(std::uint32_t x) {
  x ^= x >> 16;
  x *= 0x7feb352du;
  x ^= x >> 15;
  x *= 0x846ca68bu;
  return x ^ x >> 16;
}

__global__ void __launch_bounds__(kFillThreads)
    FillBytesKernel(std::uint8_t* data, std::int64_t n, std::uint32_t seed) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kFillThreads + threadIdx.x;
  if (i < n) data[i] = static_cast<std::uint8_t>(Hash(static_cast<std::uint32_t>(i) + seed));
}

__global__ void __launch_bounds__(kFillThreads) FillBF16Kernel(BF16* data, std::int64_t n, std::uint32_t seed) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kFillThreads + threadIdx.x;
  const float unit = static_cast<float>(Hash(static_cast<std::uint32_t>(i) + seed) >> 8) / 8388608.0f - 1.0f;
  if (i < n) data[i] = __float2bfloat16_rn(unit);
}

template <typename T>
absl::Status Fill(cuda::Stream& stream, void (*kernel)(T*, std::int64_t, std::uint32_t), DeviceMemory& memory,
                  std::uint32_t seed) {
  const std::int64_t n = memory.size_bytes() / static_cast<std::int64_t>(sizeof(T));
  cuda::LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(cuda::CeilDiv(n, kFillThreads)));
  shape.block = dim3(kFillThreads);
  return cuda::Launch(stream, shape, kernel, memory.as<T>(), n, seed);
}

struct Event {
  Event() { cudaEventCreate(&handle); }
  ~Event() { cudaEventDestroy(handle); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  cudaEvent_t handle = nullptr;
};

// A cuBLASLt product y[T, n] = x[T, k] W[n, k]^T in bf16 by the heuristic's first choice.
class PlainProduct {
 public:
  PlainProduct() = default;
  ~PlainProduct() {
    if (product_ != nullptr) cublasLtMatmulDescDestroy(product_);
    for (cublasLtMatrixLayout_t layout : {w_, x_, y_}) {
      if (layout != nullptr) cublasLtMatrixLayoutDestroy(layout);
    }
    if (preference_ != nullptr) cublasLtMatmulPreferenceDestroy(preference_);
  }
  PlainProduct(const PlainProduct&) = delete;
  PlainProduct& operator=(const PlainProduct&) = delete;

  absl::Status Init(cuda::Stream& stream, std::int64_t tokens, std::int64_t n, std::int64_t k) {
    const auto layout = [](std::int64_t rows, std::int64_t cols, cublasLtMatrixLayout_t* out) {
      return cublasLtMatrixLayoutCreate(out, CUDA_R_16BF, static_cast<std::uint64_t>(rows),
                                        static_cast<std::uint64_t>(cols), rows);
    };
    QST_CUDA_RETURN_IF_ERROR(cublasLtMatmulDescCreate(&product_, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    const cublasOperation_t transpose = CUBLAS_OP_T;
    QST_CUDA_RETURN_IF_ERROR(
        cublasLtMatmulDescSetAttribute(product_, CUBLASLT_MATMUL_DESC_TRANSA, &transpose, sizeof(transpose)));
    QST_CUDA_RETURN_IF_ERROR(layout(k, n, &w_));
    QST_CUDA_RETURN_IF_ERROR(layout(k, tokens, &x_));
    QST_CUDA_RETURN_IF_ERROR(layout(n, tokens, &y_));
    QST_CUDA_RETURN_IF_ERROR(cublasLtMatmulPreferenceCreate(&preference_));
    const std::uint64_t workspace = kBlasWorkspaceBytes;
    QST_CUDA_RETURN_IF_ERROR(cublasLtMatmulPreferenceSetAttribute(preference_, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                                                  &workspace, sizeof(workspace)));
    cublasLtMatmulHeuristicResult_t result = {};
    int num_results = 0;
    QST_CUDA_RETURN_IF_ERROR(
        cublasLtMatmulAlgoGetHeuristic(stream.blas, product_, w_, x_, y_, y_, preference_, 1, &result, &num_results));
    if (num_results == 0) return absl::InternalError("cuBLASLt has no algorithm for the plain product");
    algorithm_ = result.algo;
    return absl::OkStatus();
  }

  absl::Status Run(cuda::Stream& stream, const void* x, const void* w, void* y, void* workspace) {
    const float alpha = 1.0f;
    const float beta = 0.0f;
    QST_CUDA_RETURN_IF_ERROR(cublasLtMatmul(stream.blas, product_, &alpha, w, w_, x, x_, &beta, y, y_, y, y_,
                                            &algorithm_, workspace, kBlasWorkspaceBytes, stream.handle));
    return absl::OkStatus();
  }

 private:
  cublasLtMatmulDesc_t product_ = nullptr;
  cublasLtMatrixLayout_t w_ = nullptr;
  cublasLtMatrixLayout_t x_ = nullptr;
  cublasLtMatrixLayout_t y_ = nullptr;
  cublasLtMatmulPreference_t preference_ = nullptr;
  cublasLtMatmulAlgo_t algorithm_ = {};
};

// Random 4-bit weights [n, k] of one shape, their values of no matter.
struct Quant4Weights {
  std::int64_t n = 0, k = 0;
  std::vector<DeviceMemory> packed;
  DeviceMemory codes, nested_absmax, map;

  absl::Status Init(const OpContext& ctx, std::int64_t rows, std::int64_t cols) {
    n = rows;
    k = cols;
    const std::int64_t num_blocks = n * k / kBlockSize;
    const std::int64_t num_copies = std::max<std::int64_t>(2, cuda::CeilDiv(kRotationBytes, n * k / 2));
    for (std::int64_t i = 0; i < num_copies; ++i) {
      QST_ASSIGN_OR_RETURN(DeviceMemory memory, DeviceMemory::Allocate(ctx, n * k / 2));
      QST_RETURN_IF_ERROR(Fill(*ctx.stream, FillBytesKernel, memory, static_cast<std::uint32_t>(i) * 7919u));
      packed.push_back(std::move(memory));
    }
    QST_ASSIGN_OR_RETURN(codes, DeviceMemory::Allocate(ctx, num_blocks));
    QST_RETURN_IF_ERROR(Fill(*ctx.stream, FillBytesKernel, codes, 1u));
    const std::vector<float> ones(cuda::CeilDiv(num_blocks, kNestedBlockSize), 0.01f);
    QST_ASSIGN_OR_RETURN(nested_absmax, DeviceMemory::CopyOf(ctx, ones.data(), ones.size() * sizeof(float)));
    QST_ASSIGN_OR_RETURN(map, DeviceMemory::CopyOf(ctx, DynamicMap8(), 256 * sizeof(float)));
    return Synchronize(ctx);
  }

  std::int64_t bytes() const { return n * k / 2 + n * k / kBlockSize; }
  Quant4View view(std::int64_t copy) const {
    Quant4View v;
    v.rows = n;
    v.cols = k;
    v.block_size = kBlockSize;
    v.packed = packed[copy % packed.size()].as<std::uint8_t>();
    v.absmax_codes = codes.as<std::uint8_t>();
    v.nested_absmax = nested_absmax.as<float>();
    v.nested_map = map.as<float>();
    v.nested_offset = 0.02f;
    v.nested_block_size = kNestedBlockSize;
    return v;
  }
};

class Bench {
 public:
  absl::Status Init(int ordinal) {
    cuda::DeviceOptions options;
    options.ordinal = ordinal;
    QST_ASSIGN_OR_RETURN(device_, cuda::Device::Open(options));
    QST_ASSIGN_OR_RETURN(stream_, device_->NewStream());
    ctx_ = OpContext{DeviceType::kCuda, nullptr, CpuIsa::kAuto, stream_.get()};
    QST_ASSIGN_OR_RETURN(flush_, DeviceMemory::Allocate(ctx_, kFlushBytes));
    QST_ASSIGN_OR_RETURN(workspace_, DeviceMemory::Allocate(ctx_, kBlasWorkspaceBytes));
    std::fprintf(stderr, "%s\n", device_->name().c_str());
    return absl::OkStatus();
  }

  absl::Status CopyBandwidth() {
    QST_ASSIGN_OR_RETURN(DeviceMemory from, DeviceMemory::Allocate(ctx_, kFlushBytes));
    QST_ASSIGN_OR_RETURN(const double seconds, Seconds(1, [&](std::int64_t) {
                           return CopyBytes(ctx_, from.data(), kFlushBytes, flush_.data());
                         }));
    copy_bytes_per_second_ = 2.0 * kFlushBytes / seconds;
    Print("copy_bandwidth", absl::StrCat(kFlushBytes), copy_bytes_per_second_ / 1e9, "GB/s", 1.0);
    return absl::OkStatus();
  }

  absl::Status MatmulCeiling() {
    constexpr std::int64_t kSize = 8192;
    QST_ASSIGN_OR_RETURN(DeviceMemory x, BF16Matrix(kSize, kSize, 1));
    QST_ASSIGN_OR_RETURN(DeviceMemory w, BF16Matrix(kSize, kSize, 2));
    QST_ASSIGN_OR_RETURN(DeviceMemory y, BF16Matrix(kSize, kSize, 3));
    PlainProduct product;
    QST_RETURN_IF_ERROR(product.Init(*stream_, kSize, kSize, kSize));
    QST_ASSIGN_OR_RETURN(const double seconds, Seconds(1, [&](std::int64_t) {
                           return product.Run(*stream_, x.data(), w.data(), y.data(), workspace_.data());
                         }));
    Print("matmul_bf16", "8192x8192x8192", 2.0 * kSize * kSize * kSize / seconds / 1e12, "TFLOP/s", 1.0);
    return absl::OkStatus();
  }

  // All of one shape: unpacking, then layers with more and more tokens.
  absl::Status Shape(std::int64_t n, std::int64_t k) {
    Quant4Weights weights;
    QST_RETURN_IF_ERROR(weights.Init(ctx_, n, k));
    const std::int64_t num_copies = static_cast<std::int64_t>(weights.packed.size());
    QST_ASSIGN_OR_RETURN(DeviceMemory dense, BF16Matrix(n, k, 4));
    const MatrixView out{dense.data(), DType::kBF16, n, k, k};
    QST_ASSIGN_OR_RETURN(const double seconds, Seconds(num_copies, [&](std::int64_t i) {
                           return cuda::Dequantize(*stream_, weights.view(i), 0, out);
                         }));
    const double rate = static_cast<double>(weights.bytes() + 2 * n * k) / seconds;
    Print("dequantize_bf16", absl::StrCat(n, "x", k), rate / 1e9, "GB/s", rate / copy_bytes_per_second_);
    for (const std::int64_t tokens : {1, 8, 512, 2048, 4096, 8192, 16384}) {
      QST_RETURN_IF_ERROR(Layer(weights, tokens));
    }
    return absl::OkStatus();
  }

 private:
  absl::Status Layer(const Quant4Weights& weights, std::int64_t tokens) {
    const std::int64_t n = weights.n;
    const std::int64_t k = weights.k;
    QST_ASSIGN_OR_RETURN(DeviceMemory x, BF16Matrix(tokens, k, 5));
    QST_ASSIGN_OR_RETURN(DeviceMemory y, BF16Matrix(tokens, n, 6));
    const ConstMatrixView x_view(x.data(), DType::kBF16, tokens, k, k);
    const MatrixView y_view{y.data(), DType::kBF16, tokens, n, n};
    // Few tokens: all copies of the weight in turn, so that none is in a cache. Many: a few in a row, as in a pass.
    const std::int64_t repeats = tokens <= 8 ? static_cast<std::int64_t>(weights.packed.size()) : 4;
    QST_ASSIGN_OR_RETURN(const double seconds, Seconds(repeats, [&](std::int64_t i) {
                           return Linear(ctx_, x_view, WeightView::Quantized(weights.view(i)), ConstMatrixView(),
                                         y_view, false);
                         }));

    const std::int64_t num_dense =
        tokens <= 8 ? std::max<std::int64_t>(2, cuda::CeilDiv(kRotationBytes, 2 * n * k)) : 2;
    std::vector<DeviceMemory> dense;
    for (std::int64_t i = 0; i < num_dense; ++i) {
      QST_ASSIGN_OR_RETURN(DeviceMemory w, BF16Matrix(n, k, static_cast<std::uint32_t>(7 + i)));
      dense.push_back(std::move(w));
    }
    PlainProduct product;
    QST_RETURN_IF_ERROR(product.Init(*stream_, tokens, n, k));
    QST_ASSIGN_OR_RETURN(const double plain_seconds, Seconds(std::max<std::int64_t>(4, num_dense), [&](std::int64_t i) {
                           return product.Run(*stream_, x.data(), dense[i % num_dense].data(), y.data(),
                                              workspace_.data());
                         }));

    const std::string shape = absl::StrCat(tokens, "x", n, "x", k);
    const double flops = 2.0 * static_cast<double>(tokens) * static_cast<double>(n) * static_cast<double>(k);
    Print("linear_nf4", shape, flops / seconds / 1e12, "TFLOP/s", plain_seconds / seconds);
    if (tokens <= 8) {
      const double rate = static_cast<double>(weights.bytes()) / seconds;
      Print("read_nf4", shape, rate / 1e9, "GB/s", rate / copy_bytes_per_second_);
    }
    return absl::OkStatus();
  }

  absl::StatusOr<DeviceMemory> BF16Matrix(std::int64_t rows, std::int64_t cols, std::uint32_t seed) {
    QST_ASSIGN_OR_RETURN(DeviceMemory memory, DeviceMemory::Allocate(ctx_, 2 * rows * cols));
    QST_RETURN_IF_ERROR(Fill(*stream_, FillBF16Kernel, memory, seed * 104729u));
    return memory;
  }

  // Of one call, the median of kWindows windows of `repeats` calls each.
  absl::StatusOr<double> Seconds(std::int64_t repeats, const std::function<absl::Status(std::int64_t)>& run) {
    for (std::int64_t i = 0; i < 2; ++i) QST_RETURN_IF_ERROR(run(i));
    std::vector<double> seconds;
    Event begin, end;
    for (int window = 0; window < kWindows; ++window) {
      QST_RETURN_IF_ERROR(FillZero(ctx_, flush_.data(), kFlushBytes));
      QST_CUDA_RETURN_IF_ERROR(cudaEventRecord(begin.handle, stream_->handle));
      for (std::int64_t i = 0; i < repeats; ++i) QST_RETURN_IF_ERROR(run(window + i));
      QST_CUDA_RETURN_IF_ERROR(cudaEventRecord(end.handle, stream_->handle));
      QST_RETURN_IF_ERROR(Synchronize(ctx_));
      float milliseconds = 0.0f;
      QST_CUDA_RETURN_IF_ERROR(cudaEventElapsedTime(&milliseconds, begin.handle, end.handle));
      seconds.push_back(static_cast<double>(milliseconds) / 1e3 / static_cast<double>(repeats));
    }
    std::nth_element(seconds.begin(), seconds.begin() + kWindows / 2, seconds.end());
    return seconds[kWindows / 2];
  }

  static void Print(const char* name, const std::string& shape, double value, const char* unit, double ratio) {
    std::puts(absl::StrFormat(R"({"name": "%s", "shape": "%s", "value": %.2f, "unit": "%s", "ratio": %.4f})", name,
                              shape, value, unit, ratio)
                  .c_str());
    std::fflush(stdout);
  }

  std::unique_ptr<cuda::Device> device_;
  cuda::StreamPtr stream_;
  OpContext ctx_;
  DeviceMemory flush_;
  DeviceMemory workspace_;
  double copy_bytes_per_second_ = 0.0;
};

}  // namespace

absl::Status RunCudaLinearBench(int ordinal) {
  Bench bench;
  QST_RETURN_IF_ERROR(bench.Init(ordinal));
  QST_RETURN_IF_ERROR(bench.CopyBandwidth());
  QST_RETURN_IF_ERROR(bench.MatmulCeiling());
  struct {
    std::int64_t n, k;
  } constexpr kShapes[] = {
      {4096, 4096}, {11008, 4096}, {4096, 11008},                 // LLaMA-2 7B: attention, gate and up, down
      {8192, 8192}, {1024, 8192},  {28672, 8192}, {8192, 28672},  // 70B: queries and output, keys and values, MLP
  };
  for (const auto& shape : kShapes) QST_RETURN_IF_ERROR(bench.Shape(shape.n, shape.k));
  return absl::OkStatus();
}

}  // namespace qst
