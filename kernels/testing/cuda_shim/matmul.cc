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

std::int64_t RoundUp(std::int64_t value, std::int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

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

// Element (i, j) of batch `batch` goes to result[j * stride + i]; what lies between rows and stride becomes 0.
void Gather(const StridedMatrix& m, const void* base, std::int64_t batch, bool is_transposed, bool round_to_tf32,
            std::int64_t stride, std::vector<float>& result) {
  const std::int64_t rows = is_transposed ? m.cols : m.rows;
  const std::int64_t cols = is_transposed ? m.rows : m.cols;
  const std::int64_t row_stride = is_transposed ? m.col_stride : m.row_stride;
  const std::int64_t col_stride = is_transposed ? m.row_stride : m.col_stride;
  result.assign(static_cast<std::size_t>(stride * cols), 0.0f);
  for (std::int64_t j = 0; j < cols; ++j) {
    for (std::int64_t i = 0; i < rows; ++i) {
      const float value = Load(m.type, base, batch * m.batch_stride + i * row_stride + j * col_stride);
      result[j * stride + i] = round_to_tf32 ? RoundToTf32(value) : value;
    }
  }
}

using Vector = float __attribute__((vector_size(16)));
using TileSums = Vector[kTileCols][kTileRows / 4];

// sums[j][i] += sum over k of a[k * a_stride + i] * b[k * b_stride + j]
void AddTile(const float* a, std::int64_t a_stride, const float* b, std::int64_t b_stride, std::int64_t k_size,
             TileSums& total) {
  static_assert(kTileRows == 8);
  TileSums sums = {};
  for (std::int64_t k = 0; k < k_size; ++k) {
    Vector a_low;
    Vector a_high;
    std::memcpy(&a_low, a + k * a_stride, sizeof(a_low));
    std::memcpy(&a_high, a + k * a_stride + 4, sizeof(a_high));
    for (std::int64_t j = 0; j < kTileCols; ++j) {
      const float factor = b[k * b_stride + j];
      sums[j][0] += a_low * factor;
      sums[j][1] += a_high * factor;
    }
  }
  for (std::int64_t j = 0; j < kTileCols; ++j) {
    total[j][0] += sums[j][0];
    total[j][1] += sums[j][1];
  }
}

void MultiplyTile(const float* a, std::int64_t a_stride, const float* b, std::int64_t b_stride, std::int64_t k_size,
                  int split_k, float (&tile)[kTileCols][kTileRows]) {
  TileSums sums = {};
  const std::int64_t part = (k_size + split_k - 1) / split_k;
  for (std::int64_t k = 0; k < k_size; k += part) {
    AddTile(a + k * a_stride, a_stride, b + k * b_stride, b_stride, std::min(part, k_size - k), sums);
  }
  std::memcpy(tile, sums, sizeof(tile));
}

}  // namespace

void Matmul(const MatmulProblem& p, const void* a, const void* b, const void* c, const void* bias, void* d) {
  const std::int64_t m = p.d.rows;
  const std::int64_t n = p.d.cols;
  const std::int64_t k = p.a.cols;
  const std::int64_t a_stride = RoundUp(m, kTileRows);
  const std::int64_t b_stride = RoundUp(n, kTileCols);
  std::vector<float> a_panel;
  std::vector<float> b_panel;
  for (std::int64_t batch = 0; batch < p.batch_count; ++batch) {
    Gather(p.a, a, batch, /*is_transposed=*/false, p.round_to_tf32, a_stride, a_panel);
    Gather(p.b, b, batch, /*is_transposed=*/true, p.round_to_tf32, b_stride, b_panel);
    for (std::int64_t j0 = 0; j0 < n; j0 += kTileCols) {
      for (std::int64_t i0 = 0; i0 < m; i0 += kTileRows) {
        float tile[kTileCols][kTileRows];
        MultiplyTile(a_panel.data() + i0, a_stride, b_panel.data() + j0, b_stride, k, p.split_k, tile);
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
