#include <cstdint>
#include <cstring>

#include "kernels/cpu/gemm/kernels.h"
#include "kernels/cpu/gemm/multiply_tile.h"
#include "kernels/dtype_convert.h"

namespace qst {
namespace cpu {
namespace {

// Four floats: GCC's and Clang's vector type, which they map to whatever registers the machine has. 4 x 8 takes
// eight of them as accumulators, three more for operands, of the sixteen that every x86-64 has.
struct Simd {
  using Vec = float __attribute__((vector_size(16)));
  static constexpr int kLanes = 4;
  static constexpr int kMr = 4;
  static Vec Zero() { return Vec{}; }
  static Vec Load(const float* p) {
    Vec value;
    std::memcpy(&value, p, sizeof(value));
    return value;
  }
  static void Store(float* p, Vec value) { std::memcpy(p, &value, sizeof(value)); }
  static Vec Broadcast(const float* p) { return Vec{*p, *p, *p, *p}; }
  static Vec Add(Vec a, Vec b) { return a + b; }
  static Vec MultiplyAdd(Vec a, Vec b, Vec sum) { return sum + a * b; }
};
constexpr int kNr = 2 * Simd::kLanes;

// Element i of `source`, which may lie at any address (memory-mapped checkpoints).
template <DType kType>
float LoadElem(const char* source, std::int64_t i) {
  if (kType == DType::kF32) {
    float value;
    std::memcpy(&value, source + i * 4, 4);
    return value;
  }
  std::uint16_t bits;
  std::memcpy(&bits, source + i * 2, 2);
  return kType == DType::kBF16 ? BF16ToF32(bits) : F16ToF32(bits);
}

template <DType kType>
void PackRowsAs(const void* source, std::int64_t ld, int rows, std::int64_t depth, int width, float* out) {
  const char* bytes = static_cast<const char*>(source);
  for (int i = 0; i < rows; ++i) {
    for (std::int64_t kk = 0; kk < depth; ++kk) out[kk * width + i] = LoadElem<kType>(bytes, i * ld + kk);
  }
  for (int i = rows; i < width; ++i) {
    for (std::int64_t kk = 0; kk < depth; ++kk) out[kk * width + i] = 0.0f;
  }
}

template <DType kType>
void PackColsAs(const void* source, std::int64_t ld, std::int64_t depth, int cols, int width, float* out) {
  const char* bytes = static_cast<const char*>(source);
  for (std::int64_t kk = 0; kk < depth; ++kk) {
    for (int i = 0; i < cols; ++i) out[kk * width + i] = LoadElem<kType>(bytes, kk * ld + i);
    for (int i = cols; i < width; ++i) out[kk * width + i] = 0.0f;
  }
}

void PackRows(DType dtype, const void* source, std::int64_t ld, int rows, std::int64_t depth, int width, float* out) {
  switch (dtype) {
    case DType::kF16:
      return PackRowsAs<DType::kF16>(source, ld, rows, depth, width, out);
    case DType::kBF16:
      return PackRowsAs<DType::kBF16>(source, ld, rows, depth, width, out);
    default:
      return PackRowsAs<DType::kF32>(source, ld, rows, depth, width, out);
  }
}

void PackCols(DType dtype, const void* source, std::int64_t ld, std::int64_t depth, int cols, int width, float* out) {
  switch (dtype) {
    case DType::kF16:
      return PackColsAs<DType::kF16>(source, ld, depth, cols, width, out);
    case DType::kBF16:
      return PackColsAs<DType::kBF16>(source, ld, depth, cols, width, out);
    default:
      return PackColsAs<DType::kF32>(source, ld, depth, cols, width, out);
  }
}

void Unpack4Rows(const std::uint8_t* packed, std::int64_t row_bytes, int rows, std::int64_t depth, const float* absmax,
                 const float* table, int width, float* out) {
  for (int i = 0; i < rows; ++i) {
    // Sixteen products instead of one per element; the same values.
    float scaled[16];
    for (int code = 0; code < 16; ++code) scaled[code] = table[code] * absmax[i];
    const std::uint8_t* row = packed + i * row_bytes;
    for (std::int64_t kk = 0; kk < depth; kk += 2) {
      const std::uint8_t byte = row[kk / 2];
      out[kk * width + i] = scaled[byte >> 4];
      out[(kk + 1) * width + i] = scaled[byte & 15];
    }
  }
  for (int i = rows; i < width; ++i) {
    for (std::int64_t kk = 0; kk < depth; ++kk) out[kk * width + i] = 0.0f;
  }
}

void Unpack4Cols(const std::uint8_t* packed, std::int64_t row_bytes, std::int64_t depth, const float* absmax,
                 const float* table, int width, float* out) {
  for (std::int64_t kk = 0; kk < depth; ++kk) {
    const std::uint8_t* row = packed + kk * row_bytes;
    for (int i = 0; i < width; i += 2) {
      out[kk * width + i] = table[row[i / 2] >> 4] * absmax[kk];
      out[kk * width + i + 1] = table[row[i / 2] & 15] * absmax[kk];
    }
  }
}

}  // namespace

// It says that its panels are one register wide: narrower ones would gain nothing.
const GemmKernels kPortableGemmKernels = {"portable",           Simd::kMr, kNr,      kNr,         Multiply<Simd, false>,
                                          Multiply<Simd, true>, PackRows,  PackCols, Unpack4Rows, Unpack4Cols};

}  // namespace cpu
}  // namespace qst
