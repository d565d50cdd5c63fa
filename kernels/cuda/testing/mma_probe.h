// Runs the instructions of mma.cuh, one warp, on operands of a test. All pointers are memory that the device reaches.
// Errors: kUnimplemented in a build without CUDA sources; else what enqueuing gave.
#ifndef QST_KERNELS_CUDA_TESTING_MMA_PROBE_H_
#define QST_KERNELS_CUDA_TESTING_MMA_PROBE_H_

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/cuda/device.h"
#include "kernels/dtype.h"

namespace qst {
namespace cuda {

// What lane l brings to and takes from an instruction: element l.
struct MmaOperands {
  std::uint32_t a[4];
  std::uint32_t b[2];
  float c[4];
};
struct Registers4 {
  std::uint32_t r[4];
};

// lanes[32]: c becomes c + A B. dtype kBF16 or kF16.
absl::Status ProbeMma(Stream& stream, DType dtype, MmaOperands* lanes);
// The same of TF32, c becomes c + A B, with the bits of a and b as they are.
absl::Status ProbeMmaTf32(Stream& stream, MmaOperands* lanes);
// high[i], low[i] = SplitTf32(values[i]), n of them.
absl::Status ProbeSplitTf32(Stream& stream, const float* values, std::int64_t n, std::uint32_t* high,
                            std::uint32_t* low);
// rows[32][8]: lane l brings row l, out[32] takes the lanes' registers.
absl::Status ProbeLoadMatrices(Stream& stream, bool transposed, const std::uint16_t* rows, Registers4* out);
// Two groups of 32 copies of 16 bytes each, in[2][32][8] to out[2][32][8]; copy i of a group is of zeros where
// is_valid[group][i] is 0. The first group is read while the second may be on its way.
absl::Status ProbeCopyAsync(Stream& stream, const std::uint16_t* in, const std::uint8_t* is_valid, std::uint16_t* out);
// out[i] = PackPair(values[2 i], values[2 i + 1]) of n pairs.
absl::Status ProbePackPair(Stream& stream, DType dtype, const float* values, std::int64_t n, std::uint32_t* out);

}  // namespace cuda
}  // namespace qst

#endif  // QST_KERNELS_CUDA_TESTING_MMA_PROBE_H_
