// What every op of this backend works with, and how it launches kernels. Included by CUDA sources only.
#ifndef QST_KERNELS_CUDA_STREAM_CUH_
#define QST_KERNELS_CUDA_STREAM_CUH_

#include <cublasLt.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <memory>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "kernels/cuda/check.h"
#include "kernels/cuda/device.h"

namespace qst {
namespace cuda {

class Stream {
 public:
  explicit Stream(Device* owner);
  ~Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  Device* const device;
  cudaStream_t handle = nullptr;
  // Weights are unpacked there while `handle` multiplies the panel before.
  cudaStream_t unpack_handle = nullptr;
  // Set by whatever may write a 4-bit weight in this stream's order: copies, quantization, waits for other streams.
  // The next use of unpack_handle then waits for `handle`, once; else it runs ahead of it.
  bool unpack_must_wait = true;
  // What is enqueued becomes part of a graph (graph.h). Whatever would wait, or ask for memory, is refused meanwhile.
  bool is_capturing = false;
  // Counts how often memory that ops keep between calls was given back for larger.
  std::int64_t memory_generation = 0;
  cublasLtHandle_t blas = nullptr;
  int num_multiprocessors = 0;
  bool allow_tf32 = false;
  // What the linear ops keep between calls (algorithms, workspace, panels); theirs alone, made when first needed.
  std::shared_ptr<void> linear;

  // Device memory of at least num_bytes for the duration of one op: the same piece for every op on this stream, so
  // that ops in order may share it. Grows when asked for more (which waits for the stream once).
  // kFailedPrecondition: it would have to grow in a capture.
  absl::StatusOr<void*> Scratch(std::int64_t num_bytes);

  // Pinned host memory through which CopyToDevice goes: a ring, so that copies overlap with the host.
  struct Staging;
  std::unique_ptr<Staging> staging;

 private:
  void* scratch_ = nullptr;
  std::int64_t scratch_bytes_ = 0;
};

// kFailedPrecondition in a capture.
inline absl::Status CheckNotCapturing(const Stream& stream, const char* what) {
  if (!stream.is_capturing) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(what, " while a graph is captured"));
}

struct LaunchShape {
  dim3 grid;
  dim3 block;
  std::int64_t dynamic_shared_bytes = 0;
};

// Enqueues kernel(arguments...) on a handle and checks that the launch was taken. An empty grid does nothing.
template <typename... Parameters, typename... Arguments>
absl::Status LaunchOn(cudaStream_t handle, const LaunchShape& shape, void (*kernel)(Parameters...),
                      Arguments&&... arguments) {
  if (shape.grid.x == 0 || shape.grid.y == 0 || shape.grid.z == 0) return absl::OkStatus();
  constexpr std::int64_t kDefaultSharedBytes = 48 << 10;
  if (shape.dynamic_shared_bytes > kDefaultSharedBytes) {
    QST_CUDA_RETURN_IF_ERROR(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                                  cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                  static_cast<int>(shape.dynamic_shared_bytes)));
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = static_cast<std::size_t>(shape.dynamic_shared_bytes);
  config.stream = handle;
  QST_CUDA_RETURN_IF_ERROR(
      cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(std::forward<Arguments>(arguments))...));
  return absl::OkStatus();
}

template <typename... Parameters, typename... Arguments>
absl::Status Launch(Stream& stream, const LaunchShape& shape, void (*kernel)(Parameters...), Arguments&&... arguments) {
  return LaunchOn(stream.handle, shape, kernel, std::forward<Arguments>(arguments)...);
}

}  // namespace cuda
}  // namespace qst

// Dynamic shared memory as an array of bytes, 128-byte aligned.
#ifdef QST_CUDA_SHIM
#define QST_DYNAMIC_SHARED(name) unsigned char* const name = ::qst::cuda_shim::DynamicShared()
#else
#define QST_DYNAMIC_SHARED(name) extern __shared__ __align__(128) unsigned char name[]
#endif

#endif  // QST_KERNELS_CUDA_STREAM_CUH_
