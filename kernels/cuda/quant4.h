// Blockwise 4-bit weights on CUDA: the bits of kernels/quant, which says what they mean. All pointers, those inside a
// Quant4View too, are memory of the stream's device. Enqueued on the stream.
#ifndef QST_KERNELS_CUDA_QUANT4_H_
#define QST_KERNELS_CUDA_QUANT4_H_

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/cuda/device.h"
#include "kernels/tensor.h"

namespace qst {
namespace cuda {

// out = rows [row_begin, row_begin + out.rows) of the weight. out f32: the bits of the host's DequantizeRange; bf16 or
// f16: those, rounded to nearest even.
// Errors kInvalidArgument: rows outside of the weight, other columns, broken view. kUnimplemented: another dtype.
absl::Status Dequantize(Stream& stream, const Quant4View& w, std::int64_t row_begin, const MatrixView& out);

// Quantizes weights [rows, cols] (f32, bf16 or f16, rows without gaps) into packed [ceil(rows * cols / 2)] and absmax
// [ceil(rows * cols / block_size)], with the bits of the host's Quantize4Bit without double quantization; the host
// makes that of absmax (DoubleQuantize in kernels/quant/quant4.h). block_size as there. The absmax of a block with an
// element that is not finite is NaN: who quantizes must look, as DoubleQuantize does. Errors kInvalidArgument: block
// size, shape. kUnimplemented: another dtype.
absl::Status Quantize4Bit(Stream& stream, const ConstMatrixView& weights, Quant4Type type, int block_size,
                          std::uint8_t* packed, float* absmax);

}  // namespace cuda
}  // namespace qst

#endif  // QST_KERNELS_CUDA_QUANT4_H_
