#include "kernels/testing/cuda_shim/matmul.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "cuda_shim/float_formats.h"

namespace qst::cuda_shim {
namespace {

// Outputs of a tile stay in registers over all of k.
constexpr std::int64_t kTileRows = 8;
constexpr std::int64_t kTileCols = 4;

float Load(cudaDataType_t type, const void* base, std::int64_t index) {
  if (type == CUDA_R_32F) return static_cast<const float*>(base)[index];
  const std::uint16_t bits = static_cast<const std::uint16_t*>(base)[index];
  return type == CUDA_R_16F ? HalfToFloat(bits) : Bf16ToFloat(bits);
}

void Store(cudaDataType_t type, void* base, std::int64_t index, float value) {
  if (type == CUDA_R_32F) {
    static_cast<float*>(base)[index] = value;
  } else {
    static_cast<std::uint16_t*>(base)[index] = type == CUDA_R_16F ? FloatToHalf(value) : FloatToBf16(value);
  }
}

float RoundToTf32(float x) {
  if (x - x != 0.0f) return x;  // infinite or NaN
  const std::uint32_t bits = FloatBits(x);
  return BitsToFloat((bits + 0xfffu + (bits >> 13 & 1u)) & ~0x1fffu);
}

// Copies rows [m, k] of one batch, or columns [k, n] if `by_columns`, as tiles of `tile` of them: the one after the
// other, in each, the elements of one k side by side. What lacks in the last tile becomes 0.
void Pack(const StridedMatrix& m, const void* base, std::int64_t batch, bool by_columns, bool round_to_tf32,
          std::int64_t tile, std::vector<float>& packed) {
  const std::int64_t lines = by_columns ? m.cols : m.rows;
  const std::int64_t k_size = by_columns ? m.rows : m.cols;
  const std::int64_t line_stride = by_columns ? m.col_stride : m.row_stride;
  const std::int64_t k_stride = by_columns ? m.row_stride : m.col_stride;
  packed.assign(static_cast<std::size_t>((lines + tile - 1) / tile * tile * k_size), 0.0f);
  for (std::int64_t line = 0; line < lines; ++line) {
    float* to = packed.data() + line / tile * tile * k_size + line % tile;
    for (std::int64_t k = 0; k < k_size; ++k) {
      const float value = Load(m.type, base, batch * m.batch_stride + line * line_stride + k * k_stride);
      to[k * tile] = round_to_tf32 ? RoundToTf32(value) : value;
    }
  }
}

// tile[j][i] += sum over k of a[k * kTileRows + i] * b[k * kTileCols + j]
void AddTile(const float* a, const float* b, std::int64_t k_size, float (&tile)[kTileCols][kTileRows]) {
  using Vector = float __attribute__((vector_size(4 * kTileRows)));
  static_assert(kTileCols == 4);
  Vector sum0 = {};
  Vector sum1 = {};
  Vector sum2 = {};
  Vector sum3 = {};
  for (std::int64_t k = 0; k < k_size; ++k) {
    Vector column;
    std::memcpy(&column, a + k * kTileRows, sizeof(column));
    const float* row = b + k * kTileCols;
    sum0 += column * row[0];
    sum1 += column * row[1];
    sum2 += column * row[2];
    sum3 += column * row[3];
  }
  const Vector sums[kTileCols] = {sum0, sum1, sum2, sum3};
  for (std::int64_t j = 0; j < kTileCols; ++j) {
    for (std::int64_t i = 0; i < kTileRows; ++i) tile[j][i] += sums[j][i];
  }
}

}  // namespace

void Matmul(const MatmulProblem& p, const void* a, const void* b, const void* c, const void* bias, void* d) {
  const std::int64_t m = p.d.rows;
  const std::int64_t n = p.d.cols;
  const std::int64_t k = p.a.cols;
  const std::int64_t part = (k + p.split_k - 1) / p.split_k;
  std::vector<float> a_packed;
  std::vector<float> b_packed;
  for (std::int64_t batch = 0; batch < p.batch_count; ++batch) {
    Pack(p.a, a, batch, /*by_columns=*/false, p.round_to_tf32, kTileRows, a_packed);
    Pack(p.b, b, batch, /*by_columns=*/true, p.round_to_tf32, kTileCols, b_packed);
    for (std::int64_t j0 = 0; j0 < n; j0 += kTileCols) {
      for (std::int64_t i0 = 0; i0 < m; i0 += kTileRows) {
        float tile[kTileCols][kTileRows] = {};
        for (std::int64_t k0 = 0; k0 < k; k0 += part) {
          AddTile(a_packed.data() + i0 * k + k0 * kTileRows, b_packed.data() + j0 * k + k0 * kTileCols,
                  std::min(part, k - k0), tile);
        }
        for (std::int64_t j = j0; j < std::min(j0 + kTileCols, n); ++j) {
          for (std::int64_t i = i0; i < std::min(i0 + kTileRows, m); ++i) {
            float value = p.alpha * tile[j - j0][i - i0];
            if (p.beta != 0.0f) {
              value += p.beta * Load(p.c.type, c, batch * p.c.batch_stride + i * p.c.row_stride + j * p.c.col_stride);
            }
            if (p.has_bias) value += Load(p.bias_type, bias, batch * p.bias_batch_stride + i);
            if (p.has_relu && !(value > 0.0f) && value == value) value = 0.0f;
            Store(p.d.type, d, batch * p.d.batch_stride + i * p.d.row_stride + j * p.d.col_stride, value);
          }
        }
      }
    }
  }
}

}  // namespace qst::cuda_shim
