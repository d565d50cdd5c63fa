// What quantization has cost: sums of squared differences between a weight and what its 4-bit form means.
#ifndef QST_KERNELS_QUANT_QUANT4_ERROR_H_
#define QST_KERNELS_QUANT_QUANT4_ERROR_H_

#include <array>
#include <cstdint>

#include "absl/status/status.h"
#include "kernels/device.h"
#include "kernels/tensor.h"

namespace qst {

// Fed with a weight's original elements piece by piece, from the first one on. Sums are float64, eight side by side
// (element e goes to sum e % 8), with the same bits whatever the instruction set and the pieces.
class Quant4Error {
 public:
  // A view that CheckQuant4View accepts, whose memory must outlive this.
  explicit Quant4Error(const Quant4View& view) : view_(view) {}

  // The next `count` elements. A multiple of the block size and of 8 unless they are the last ones: else, or if
  // there are not so many, kFailedPrecondition; also if the machine lacks `isa`.
  absl::Status Append(const float* original, std::int64_t count, CpuIsa isa = CpuIsa::kAuto);

  // Sums over the elements so far, of (quantized - original)^2 and of original^2.
  double squared_error() const { return Sum(error_); }
  double squared_norm() const { return Sum(norm_); }

 private:
  using Lanes = std::array<double, 8>;
  static double Sum(const Lanes& lanes);
  void AppendPortable(const float* original, std::int64_t begin, std::int64_t count);
  void AppendAvx2(const float* original, std::int64_t count);

  Quant4View view_;
  std::int64_t num_elems_ = 0;  // appended
  Lanes error_{};
  Lanes norm_{};
};

}  // namespace qst

#endif  // QST_KERNELS_QUANT_QUANT4_ERROR_H_
