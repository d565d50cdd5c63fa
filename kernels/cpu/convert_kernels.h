// Conversion kernels below threads and views, one namespace for each instruction set. Includes nothing
// with inline code, so that none is compiled for AVX2 by the files that are.
#ifndef QST_KERNELS_CPU_CONVERT_KERNELS_H_
#define QST_KERNELS_CPU_CONVERT_KERNELS_H_

#include <cstdint>

namespace qst {
namespace cpu {

namespace avx2 {
void BF16ToF32Row(const std::uint16_t* in, std::int64_t n, float* out);
void F16ToF32Row(const std::uint16_t* in, std::int64_t n, float* out);
void F32ToBF16Row(const float* in, std::int64_t n, std::uint16_t* out);
}  // namespace avx2

}  // namespace cpu
}  // namespace qst

#endif  // QST_KERNELS_CPU_CONVERT_KERNELS_H_
