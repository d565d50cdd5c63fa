// The code tables of blockwise 4-bit weights and of their nested 8-bit constants, as bitsandbytes defines
// them. The one definition in this project: kernels of every backend take their values from here.
#ifndef QST_KERNELS_QUANT_CODES_H_
#define QST_KERNELS_QUANT_CODES_H_

#include <cstdint>

#include "kernels/tensor.h"

namespace qst {

// The 16 values of a 4-bit type, indexed by code. NF4: quantiles of the normal distribution (QLoRA,
// arXiv 2305.14314, appendix E), ascending, code 7 is zero. FP4: sign bit 8, then twelfths 0, 1/16, 8, 12, 4, 6, 2, 3.
const float* Quant4Table(Quant4Type type);

// The 256 values, ascending, of the 8-bit code of nested constants: for each power of ten from 1e-6 to 1
// twice as many values as for the one below, both signs, and 0 and 1.
const float* DynamicMap8();

// Whether these 256 values are DynamicMap8's but for their last bits, which depend on the version of PyTorch that
// computed them and on its machine. Weights that come with such a table mean what their own table says.
bool IsDynamicMap8(const float* map);

// How a value becomes a code: its rank is the number of thresholds below it (NF4) or below its magnitude (FP4), and
// the code is that of the rank, plus `sign` if it is negative.
struct Quant4Rule {
  int num_thresholds = 0;
  const float* thresholds = nullptr;           // ascending
  const std::uint8_t* code_of_rank = nullptr;  // [num_thresholds + 1]
  bool of_magnitude = false;
  std::uint8_t sign = 0;
};
Quant4Rule Quant4RuleOf(Quant4Type type);

// The code of `x` in [-1, 1], a weight over its block's absmax. A NaN gives code 0.
std::uint8_t Quant4Code(Quant4Type type, float x);

// Quant4Code of n values; faster than one at a time.
void Quant4Codes(Quant4Type type, const float* x, std::int64_t n, std::uint8_t* codes);

// The index of the value of DynamicMap8 nearest to `x`; a tie goes to the even index. A NaN gives 0.
std::uint8_t DynamicMap8Code(float x);

}  // namespace qst

#endif  // QST_KERNELS_QUANT_CODES_H_
