#include "kernels/quant/codes.h"

#include <algorithm>
#include <array>
#include <cmath>

namespace qst {
namespace {

constexpr float kNf4[16] = {-1.0f,
                            -0.6961928009986877f,
                            -0.5250730514526367f,
                            -0.39491748809814453f,
                            -0.28444138169288635f,
                            -0.18477343022823334f,
                            -0.09105003625154495f,
                            0.0f,
                            0.07958029955625534f,
                            0.16093020141124725f,
                            0.24611230194568634f,
                            0.33791524171829224f,
                            0.44070982933044434f,
                            0.5626170039176941f,
                            0.7229568362236023f,
                            1.0f};

// A code is the number of thresholds below the value. These are bitsandbytes' constants: midpoints, but
// some with another last digit than computing them from the table gives.
constexpr float kNf4Thresholds[15] = {
    -0.8480964004993439f,  -0.6106329262256622f,   -0.4599952697753906f, -0.33967943489551544f, -0.23460740596055984f,
    -0.13791173323988914f, -0.045525018125772476f, 0.03979014977812767f, 0.1202552504837513f,   0.2035212516784668f,
    0.2920137718319893f,   0.3893125355243683f,    0.5016634166240692f,  0.6427869200706482f,   0.8614784181118011f};

constexpr std::uint8_t kNf4CodeOfRank[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

constexpr float kFp4[16] = {0.0f,  0.005208333333f,  0.66666667f,  1.0f,  0.33333333f,  0.5f,  0.16666667f,  0.25f,
                            -0.0f, -0.005208333333f, -0.66666667f, -1.0f, -0.33333333f, -0.5f, -0.16666667f, -0.25f};

// Thresholds between the magnitudes in ascending order, and the code of each magnitude.
constexpr float kFp4Thresholds[7] = {0.00260417f, 0.0859375f, 0.20833333f, 0.29166667f,
                                     0.4166667f,  0.583333f,  0.8333333f};
constexpr std::uint8_t kFp4CodeOfRank[8] = {0, 1, 6, 7, 4, 5, 2, 3};
constexpr std::uint8_t kFp4Sign = 8;

int Nf4Rank(float x) {
  int rank = 0;
  for (const float threshold : kNf4Thresholds) rank += x > threshold ? 1 : 0;
  return rank;
}

int Fp4Rank(float x) {
  const float magnitude = std::fabs(x);
  int rank = 0;
  for (const float threshold : kFp4Thresholds) rank += magnitude > threshold ? 1 : 0;
  return rank;
}

// num_points values evenly spaced over [0.1, 1] with the float32 roundings of PyTorch's linspace on CPU (2.x, with
// fused multiply-add), which the published maps come from: from both ends towards the middle.
std::array<float, 65> EvenlySpaced(int num_points) {
  const float first = 0.1f;
  const float last = 1.0f;
  const float step = (last - first) / static_cast<float>(num_points - 1);
  std::array<float, 65> points{};
  for (int i = 0; i < num_points; ++i) {
    points[i] = i < num_points / 2 ? std::fma(step, static_cast<float>(i), first)
                                   : std::fma(-step, static_cast<float>(num_points - 1 - i), last);
  }
  return points;
}

std::array<float, 256> MakeDynamicMap8() {
  // float32(10^(exponent - 6)): the factor as PyTorch multiplies with it.
  constexpr float kScales[7] = {1e-6f, 1e-5f, 1e-4f, 1e-3f, 1e-2f, 1e-1f, 1.0f};
  std::array<float, 256> map{};
  int size = 0;
  for (int exponent = 0; exponent < 7; ++exponent) {
    const int num_intervals = 1 << exponent;
    const std::array<float, 65> bounds = EvenlySpaced(num_intervals + 1);
    for (int i = 0; i < num_intervals; ++i) {
      const float mean = (bounds[i] + bounds[i + 1]) / 2.0f;
      map[size++] = kScales[exponent] * mean;
      map[size++] = -kScales[exponent] * mean;
    }
  }
  map[size++] = 0.0f;
  map[size++] = 1.0f;
  std::sort(map.begin(), map.end());
  return map;
}

}  // namespace

const float* Quant4Table(Quant4Type type) { return type == Quant4Type::kNF4 ? kNf4 : kFp4; }

Quant4Rule Quant4RuleOf(Quant4Type type) {
  if (type == Quant4Type::kNF4) return Quant4Rule{15, kNf4Thresholds, kNf4CodeOfRank, false, 0};
  return Quant4Rule{7, kFp4Thresholds, kFp4CodeOfRank, true, kFp4Sign};
}

const float* DynamicMap8() {
  static const std::array<float, 256> map = MakeDynamicMap8();
  return map.data();
}

std::uint8_t Quant4Code(Quant4Type type, float x) {
  if (type == Quant4Type::kNF4) return static_cast<std::uint8_t>(Nf4Rank(x));
  return static_cast<std::uint8_t>(kFp4CodeOfRank[Fp4Rank(x)] + (x < 0.0f ? kFp4Sign : 0));
}

void Quant4Codes(Quant4Type type, const float* x, std::int64_t n, std::uint8_t* codes) {
  if (type == Quant4Type::kNF4) {
    for (std::int64_t i = 0; i < n; ++i) codes[i] = static_cast<std::uint8_t>(Nf4Rank(x[i]));
  } else {
    for (std::int64_t i = 0; i < n; ++i) codes[i] = Quant4Code(Quant4Type::kFP4, x[i]);
  }
}

bool IsDynamicMap8(const float* map) {
  constexpr float kTolerance = 1e-6f;  // relative; two of the last bits are about 2.4e-7
  const float* expected = DynamicMap8();
  // Not `> kTolerance`: a NaN must not pass.
  return std::all_of(map, map + 256, [&](const float& value) {
    const float wanted = expected[&value - map];
    return std::fabs(value - wanted) <= kTolerance * std::fabs(wanted);
  });
}

std::uint8_t DynamicMap8Code(float x) {
  const float* map = DynamicMap8();
  // The number of values below x, at most 255: a NaN has none. No step is a branch, which way it goes being anyone's
  // guess.
  int upper = 0;
  for (int step = 128; step > 0; step /= 2) upper += static_cast<int>(map[upper + step - 1] < x) * step;
  const int lower = std::max(upper, 1) - 1;
  const float middle = (map[lower] + map[upper]) * 0.5f;
  const int is_tie = static_cast<int>(x == middle);
  return static_cast<std::uint8_t>(lower + (static_cast<int>(x > middle) | (is_tie & lower)));
}

}  // namespace qst
