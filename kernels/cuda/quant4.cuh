// What kernels that read 4-bit weights share: the view as a kernel's argument, constants of blocks, tables in shared
// memory. For .cu files.
#ifndef QST_KERNELS_CUDA_QUANT4_CUH_
#define QST_KERNELS_CUDA_QUANT4_CUH_

#include <cuda_runtime.h>

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/cuda/numeric.cuh"
#include "kernels/cuda/stream.cuh"
#include "kernels/quant/codes.h"
#include "kernels/tensor.h"

namespace qst {
namespace cuda {

// A Quant4View and its code table, passed to kernels by value.
struct Quant4Operand {
  Quant4View view;
  // log2 of the sizes of blocks.
  int block_shift = 0;
  int nested_shift = 0;
  float table[16] = {};
};

// CheckQuant4View's errors, and kUnimplemented for block sizes that are not powers of two.
absl::Status CheckQuant4ForCuda(const Quant4View& view);
// Of a view that passes it.
Quant4Operand MakeQuant4Operand(const Quant4View& view);

__device__ __forceinline__ std::int64_t BlockOfElement(const Quant4Operand& w, std::int64_t element) {
  return element >> w.block_shift;
}

// map value * nested absmax + offset, rounded after each operation: the bits of the host's BlockAbsmax.
__device__ __forceinline__ float UnnestAbsmax(float map_value, float nested_absmax, float offset) {
  return __fadd_rn(__fmul_rn(map_value, nested_absmax), offset);
}

__device__ __forceinline__ float BlockAbsmax(const Quant4Operand& w, std::int64_t block) {
  if (w.view.absmax_codes == nullptr) return __ldg(w.view.absmax + block);
  return UnnestAbsmax(__ldg(w.view.nested_map + __ldg(w.view.absmax_codes + block)),
                      __ldg(w.view.nested_absmax + (block >> w.nested_shift)), w.view.nested_offset);
}

__device__ __forceinline__ int CodeOfElement(const Quant4Operand& w, std::int64_t element) {
  const unsigned byte = __ldg(w.view.packed + element / 2);
  return static_cast<int>(element % 2 == 0 ? byte >> 4 : byte & 15u);
}

// Dequantize (quant4.h) with checked arguments, on any of the stream's handles.
absl::Status DequantizeOn(Stream& stream, cudaStream_t handle, const Quant4View& w, std::int64_t row_begin,
                          const MatrixView& out);

}  // namespace cuda
}  // namespace qst

#endif  // QST_KERNELS_CUDA_QUANT4_CUH_
