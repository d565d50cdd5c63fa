// Weights as cuBLASLt takes them: where they lie, or panel by panel in one of two buffers. For .cu files.
//
// A panel of a 4-bit weight is unpacked on the stream's unpack_handle while `handle` multiplies the one before, also
// across ops: the first panel of a layer is unpacked while the layer before is still at its last product. Events hand
// over in both directions; the host waits for nothing.
//   unpack_handle   [unpack 0] [unpack 1]            [unpack 2 ] ...   each after the product two panels before
//   handle                     [product 0] [product 1] [product 2] ... each after its panel's unpacking
#ifndef QST_KERNELS_CUDA_GEMM_PANELS_CUH_
#define QST_KERNELS_CUDA_GEMM_PANELS_CUH_

#include <cuda_runtime.h>

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cuda/gemm/blas.cuh"
#include "kernels/cuda/gemm/plan.h"
#include "kernels/cuda/stream.cuh"
#include "kernels/dtype.h"
#include "kernels/tensor.h"

namespace qst {
namespace cuda {

// What a stream keeps for its linear ops.
class LinearState {
 public:
  // The stream's, made at the first call.
  static absl::StatusOr<LinearState*> Of(Stream& stream);
  ~LinearState();
  LinearState(const LinearState&) = delete;
  LinearState& operator=(const LinearState&) = delete;

  Blas blas;
  LinearLimits limits;

 private:
  friend class WeightPanels;
  struct Buffer {
    void* data = nullptr;
    cudaEvent_t filled = nullptr;  // on unpack_handle
    cudaEvent_t used = nullptr;    // on handle, after the last product that reads it
  };
  static constexpr int kNumBuffers = 2;

  explicit LinearState(Stream* stream) : blas(stream), stream_(stream) {}
  absl::Status Init();
  // Both buffers hold num_bytes. Growing waits for the stream, once for each larger weight.
  absl::Status Reserve(std::int64_t num_bytes);

  Stream* const stream_;
  Buffer buffers_[kNumBuffers];
  std::int64_t buffer_bytes_ = 0;
  int next_ = 0;
};

// The panels of one weight during one op.
class WeightPanels {
 public:
  // `compute`: the type that the products want.
  static absl::StatusOr<WeightPanels> Make(Stream& stream, LinearState& state, const WeightView& w, DType compute);

  // Rows of every panel but the last, which may have fewer; all of them if the weight is used where it lies.
  std::int64_t rows() const { return rows_; }
  // Elements between a panel's rows.
  std::int64_t ld() const { return ld_; }
  // Rows [begin, end) of the weight, begin a multiple of rows(), ready for work on `handle`.
  absl::StatusOr<const void*> Begin(std::int64_t begin, std::int64_t end);
  // The last product that reads the panel is enqueued.
  absl::Status End();

 private:
  WeightPanels(Stream* stream, LinearState* state, const WeightView& w, DType compute)
      : stream_(stream), state_(state), w_(w), compute_(compute) {}

  Stream* stream_;
  LinearState* state_;
  WeightView w_;
  DType compute_;
  bool is_direct_ = false;
  std::int64_t rows_ = 0;
  std::int64_t ld_ = 0;
  LinearState::Buffer* buffer_ = nullptr;
};

}  // namespace cuda
}  // namespace qst

#endif  // QST_KERNELS_CUDA_GEMM_PANELS_CUH_
