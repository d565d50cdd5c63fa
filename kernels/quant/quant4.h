// Blockwise 4-bit quantization on the host: what makes a Quant4View, and the reference of what one means.
// The result has the bits that bitsandbytes' quantize_4bit gives for the same float32 weights, with two
// exceptions: the mean of the constants (nested_offset) is summed in float64, where theirs depends on the
// device; and in a block of zeros every code is that of zero, as in theirs on CPUs (on GPUs NF4 takes code 0,
// which double quantization can turn into a small number). Where its CPU code and its CUDA kernels differ otherwise, it
// has the bits of the kernels; worker/checkpoint/quant_golden_test.cc lists the cases and checks all others.
#ifndef QST_KERNELS_QUANT_QUANT4_H_
#define QST_KERNELS_QUANT_QUANT4_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/device.h"
#include "kernels/tensor.h"

namespace qst {

struct Quant4Options {
  Quant4Type type = Quant4Type::kNF4;
  int block_size = 64;       // elements per absmax: a power of two in [64, 4096]
  bool double_quant = true;  // 8-bit absmax codes in blocks of 256 around their mean
};

// A 4-bit weight that owns its memory. See Quant4View for the layout.
struct Quant4Tensor {
  Quant4Type type = Quant4Type::kNF4;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  int block_size = 64;
  bool double_quant = false;
  std::vector<std::uint8_t> packed;
  std::vector<float> absmax;               // without double quantization
  std::vector<std::uint8_t> absmax_codes;  // with it, as the two below
  std::vector<float> nested_absmax;
  float nested_offset = 0.0f;
  std::vector<float> nested_map;  // [256], of weights that were quantized elsewhere; empty: DynamicMap8

  // Valid as long as this tensor is neither changed nor destroyed; moving it keeps views valid.
  Quant4View view() const;
  // Bytes of the vectors above.
  std::int64_t size_bytes() const;
};

// Elements per nested absmax.
inline constexpr int kNestedBlockSize = 256;

// kInvalidArgument unless it is one that weights are quantized with.
absl::Status CheckQuant4BlockSize(int block_size);

// Quantizes weights [rows, cols], row-major and contiguous. All instruction sets give the same bits.
// Errors kInvalidArgument: block_size not allowed; an element that is not finite (its index is named).
// kFailedPrecondition: the machine lacks `isa`.
absl::StatusOr<Quant4Tensor> Quantize4Bit(const float* weights, std::int64_t rows, std::int64_t cols,
                                          const Quant4Options& options, CpuIsa isa = CpuIsa::kAuto);

// The same for weights whose elements come in pieces and never lie in memory together.
class Quant4Builder {
 public:
  // Errors as Quantize4Bit's.
  static absl::StatusOr<Quant4Builder> Create(std::int64_t rows, std::int64_t cols, const Quant4Options& options,
                                              CpuIsa isa = CpuIsa::kAuto);

  // The next `count` elements of the row-major sequence: whole blocks, unless they are the last ones.
  // Errors kInvalidArgument: one that is not finite. kFailedPrecondition: no whole blocks, or more than are left.
  absl::Status Append(const float* values, std::int64_t count);
  // The weight; call once. kFailedPrecondition if elements are missing.
  absl::StatusOr<Quant4Tensor> Finish();

 private:
  Quant4Builder() = default;

  Quant4Tensor tensor_;
  bool wants_double_quant_ = false;
  bool use_avx2_ = false;
  std::int64_t num_elems_ = 0;  // appended
};

// Replaces the constants in `absmax`, made here or on a GPU, by 8-bit codes around `offset`: their mean unless given.
// Errors kInvalidArgument: a constant that is not finite (its block is named); the tensor is as it was.
absl::Status DoubleQuantize(Quant4Tensor* tensor, std::optional<float> offset = std::nullopt);

// kInvalidArgument unless the view's sizes are sane and the pointers that its kind needs are set.
absl::Status CheckQuant4View(const Quant4View& view);

// The float32 constant of block b.
inline float BlockAbsmax(const Quant4View& view, std::int64_t b) {
  if (view.absmax_codes == nullptr) return view.absmax[b];
  // Rounded twice: includers are compiled without fused operations.
  const float scaled = view.nested_map[view.absmax_codes[b]] * view.nested_absmax[b / view.nested_block_size];
  return scaled + view.nested_offset;
}

// out[i * stride] = value of element begin + i of the flat row-major sequence, for i in [0, count).
void DequantizeRange(const Quant4View& view, std::int64_t begin, std::int64_t count, float* out,
                     std::int64_t stride = 1);

}  // namespace qst

#endif  // QST_KERNELS_QUANT_QUANT4_H_
