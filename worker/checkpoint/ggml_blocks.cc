#include "worker/checkpoint/ggml_blocks.h"

#include <cstring>

#include "absl/strings/str_cat.h"
#include "kernels/dtype_convert.h"
#include "proto/support/status_macros.h"

namespace qst {
namespace {

constexpr GgmlTypeTraits kTraits[] = {
    {GgmlType::kF32, "F32", 1, 4},       {GgmlType::kF16, "F16", 1, 2},       {GgmlType::kBF16, "BF16", 1, 2},
    {GgmlType::kQ8_0, "Q8_0", 32, 34},   {GgmlType::kQ4_0, "Q4_0", 32, 18},   {GgmlType::kQ4_1, "Q4_1", 32, 20},
    {GgmlType::kQ5_0, "Q5_0", 32, 22},   {GgmlType::kQ5_1, "Q5_1", 32, 24},   {GgmlType::kQ4_K, "Q4_K", 256, 144},
    {GgmlType::kQ5_K, "Q5_K", 256, 176}, {GgmlType::kQ6_K, "Q6_K", 256, 210},
};

std::uint16_t Load16(const std::uint8_t* bytes) { return static_cast<std::uint16_t>(bytes[0] | (bytes[1] << 8)); }

std::uint32_t Load32(const std::uint8_t* bytes) {
  return static_cast<std::uint32_t>(Load16(bytes)) | (static_cast<std::uint32_t>(Load16(bytes + 2)) << 16);
}

float LoadHalf(const std::uint8_t* bytes) { return F16ToF32(Load16(bytes)); }

// Blocks of 32 with one nibble per element: byte j holds element j (low) and j + 16 (high). Q5 adds a fifth
// bit per element in a 32-bit mask. `extra` is what the nibble lacks: 0 or 16.
int LowCode(const std::uint8_t* nibbles, std::uint32_t mask, int j) {
  return (nibbles[j] & 15) | (static_cast<int>((mask >> j) & 1u) << 4);
}
int HighCode(const std::uint8_t* nibbles, std::uint32_t mask, int j) {
  return (nibbles[j] >> 4) | (static_cast<int>((mask >> (j + 16)) & 1u) << 4);
}

// [scale f16][32 x int8]: q * scale.
void DequantizeQ8_0(const std::uint8_t* block, float* out) {
  const float scale = LoadHalf(block);
  for (int j = 0; j < 32; ++j) out[j] = static_cast<float>(static_cast<std::int8_t>(block[2 + j])) * scale;
}

// [scale f16][16 bytes]: (q - 8) * scale. [scale f16][mask u32][16 bytes]: (q - 16) * scale.
void DequantizeSymmetric(const std::uint8_t* block, bool has_mask, float* out) {
  const float scale = LoadHalf(block);
  const std::uint32_t mask = has_mask ? Load32(block + 2) : 0;
  const std::uint8_t* nibbles = block + (has_mask ? 6 : 2);
  const int middle = has_mask ? 16 : 8;
  for (int j = 0; j < 16; ++j) {
    out[j] = static_cast<float>(LowCode(nibbles, mask, j) - middle) * scale;
    out[j + 16] = static_cast<float>(HighCode(nibbles, mask, j) - middle) * scale;
  }
}

// [scale f16][minimum f16]([mask u32])[16 bytes]: q * scale + minimum.
void DequantizeWithMinimum(const std::uint8_t* block, bool has_mask, float* out) {
  const float scale = LoadHalf(block);
  const float minimum = LoadHalf(block + 2);
  const std::uint32_t mask = has_mask ? Load32(block + 4) : 0;
  const std::uint8_t* nibbles = block + (has_mask ? 8 : 4);
  for (int j = 0; j < 16; ++j) {
    out[j] = static_cast<float>(LowCode(nibbles, mask, j)) * scale + minimum;
    out[j + 16] = static_cast<float>(HighCode(nibbles, mask, j)) * scale + minimum;
  }
}

// The eight 6-bit scales and minima of a K block, packed in 12 bytes: entries 0-3 in the low six bits of bytes
// 0-3 (scales) and 4-7 (minima); entries 4-7 have their low nibbles in bytes 8-11 (scale low, minimum high)
// and their top two bits in the top bits of bytes 0-3 and 4-7.
void UnpackScales(const std::uint8_t* packed, int* scales, int* minima) {
  for (int i = 0; i < 4; ++i) {
    scales[i] = packed[i] & 63;
    minima[i] = packed[i + 4] & 63;
    scales[i + 4] = (packed[i + 8] & 15) | ((packed[i] >> 6) << 4);
    minima[i + 4] = (packed[i + 8] >> 4) | ((packed[i + 4] >> 6) << 4);
  }
}

// Q4_K: [scale f16][minimum scale f16][12 bytes of 6-bit scales][128 bytes of nibbles]
// Q5_K: the same with 32 bytes of fifth bits before the nibbles: bit i of byte j belongs to element 32 i + j.
// Eight groups of 32; groups 2 i and 2 i + 1 share 32 bytes, low and high nibbles. (scale s) q - (minimum m).
void DequantizeQ45K(const std::uint8_t* block, bool has_mask, float* out) {
  const float scale = LoadHalf(block);
  const float minimum_scale = LoadHalf(block + 2);
  int scales[8];
  int minima[8];
  UnpackScales(block + 4, scales, minima);
  const std::uint8_t* fifth_bits = block + 16;
  const std::uint8_t* nibbles = block + (has_mask ? 48 : 16);
  for (int group = 0; group < 8; ++group) {
    const float group_scale = scale * static_cast<float>(scales[group]);
    const float group_minimum = minimum_scale * static_cast<float>(minima[group]);
    const std::uint8_t* bytes = nibbles + (group / 2) * 32;
    for (int j = 0; j < 32; ++j) {
      int code = group % 2 == 0 ? bytes[j] & 15 : bytes[j] >> 4;
      if (has_mask) code |= ((fifth_bits[j] >> group) & 1) << 4;
      out[group * 32 + j] = group_scale * static_cast<float>(code) - group_minimum;
    }
  }
}

// Q6_K: [128 bytes of low nibbles][64 bytes of top bit pairs][16 x int8 scale][scale f16].
// Two halves of 128 elements; within a half, elements j, j + 32, j + 64, j + 96 (j < 32) share top byte j. One
// scale per 16 elements: (scale s) (q - 32).
void DequantizeQ6K(const std::uint8_t* block, float* out) {
  const float scale = LoadHalf(block + 208);
  for (int half = 0; half < 2; ++half) {
    const std::uint8_t* low = block + half * 64;
    const std::uint8_t* top = block + 128 + half * 32;
    const std::uint8_t* scales = block + 192 + half * 8;
    for (int quarter = 0; quarter < 4; ++quarter) {
      for (int j = 0; j < 32; ++j) {
        const std::uint8_t byte = low[(quarter % 2) * 32 + j];
        const int nibble = quarter < 2 ? byte & 15 : byte >> 4;
        const int code = (nibble | (((top[j] >> (2 * quarter)) & 3) << 4)) - 32;
        const float group_scale = scale * static_cast<float>(static_cast<std::int8_t>(scales[quarter * 2 + j / 16]));
        out[half * 128 + quarter * 32 + j] = group_scale * static_cast<float>(code);
      }
    }
  }
}

}  // namespace

const GgmlTypeTraits* FindGgmlType(std::uint32_t type) {
  for (const GgmlTypeTraits& traits : kTraits) {
    if (static_cast<std::uint32_t>(traits.type) == type) return &traits;
  }
  return nullptr;
}

std::string GgmlTypeName(std::uint32_t type) {
  if (const GgmlTypeTraits* traits = FindGgmlType(type)) return traits->name;
  struct Row {
    std::uint32_t type;
    const char* name;
  };
  static constexpr Row kOthers[] = {
      {9, "Q8_1"},   {10, "Q2_K"},   {11, "Q3_K"},  {15, "Q8_K"},  {16, "IQ2_XXS"}, {17, "IQ2_XS"}, {18, "IQ3_XXS"},
      {19, "IQ1_S"}, {20, "IQ4_NL"}, {21, "IQ3_S"}, {22, "IQ2_S"}, {23, "IQ4_XS"},  {24, "I8"},     {25, "I16"},
      {26, "I32"},   {27, "I64"},    {28, "F64"},   {29, "IQ1_M"}, {34, "TQ1_0"},   {35, "TQ2_0"},  {39, "MXFP4"},
  };
  for (const Row& row : kOthers) {
    if (row.type == type) return row.name;
  }
  return absl::StrCat("type ", type);
}

std::string SupportedGgmlTypes() {
  std::string names;
  for (const GgmlTypeTraits& traits : kTraits) absl::StrAppend(&names, names.empty() ? "" : ", ", traits.name);
  return names;
}

void DequantizeGgmlBlocks(GgmlType type, const std::uint8_t* blocks, std::int64_t num_blocks, float* out) {
  const GgmlTypeTraits* traits = FindGgmlType(static_cast<std::uint32_t>(type));
  QST_CHECK(traits != nullptr);
  for (std::int64_t i = 0; i < num_blocks; ++i, blocks += traits->block_bytes, out += traits->block_elems) {
    switch (type) {
      case GgmlType::kF32:
        *out = BitsToFloat(Load32(blocks));
        break;
      case GgmlType::kF16:
        *out = LoadHalf(blocks);
        break;
      case GgmlType::kBF16:
        *out = BF16ToF32(Load16(blocks));
        break;
      case GgmlType::kQ8_0:
        DequantizeQ8_0(blocks, out);
        break;
      case GgmlType::kQ4_0:
        DequantizeSymmetric(blocks, /*has_mask=*/false, out);
        break;
      case GgmlType::kQ5_0:
        DequantizeSymmetric(blocks, /*has_mask=*/true, out);
        break;
      case GgmlType::kQ4_1:
        DequantizeWithMinimum(blocks, /*has_mask=*/false, out);
        break;
      case GgmlType::kQ5_1:
        DequantizeWithMinimum(blocks, /*has_mask=*/true, out);
        break;
      case GgmlType::kQ4_K:
        DequantizeQ45K(blocks, /*has_mask=*/false, out);
        break;
      case GgmlType::kQ5_K:
        DequantizeQ45K(blocks, /*has_mask=*/true, out);
        break;
      case GgmlType::kQ6_K:
        DequantizeQ6K(blocks, out);
        break;
    }
  }
}

}  // namespace qst
