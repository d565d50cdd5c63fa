#include <immintrin.h>

#include "kernels/cpu/attention_kernels.h"
#include "kernels/cpu/attention_tiles_avx2.h"
#include "kernels/cpu/vec_math_avx2.h"

// Forward. Rows (position major, query head minor) go in tiles of up to kTileRows. A block of keys is
// transposed once per task, so that scores are computed for 16 keys at a time at any head width. Values
// are combined in one of two ways:
//   wide    broadcast a weight, 16 columns of a value row at a time (head_dim > kNarrow)
//   narrow  8 keys at a time against transposed values; lanes are summed at the very end
// In both, an output element's sum runs over its row's keys in ascending order (per lane), whatever tile
// the row is in. Keys that a row must not see are never multiplied in, so not even an infinity leaks.
namespace qst {
namespace cpu {
namespace avx2 {
namespace {

constexpr std::int64_t kNarrow = 16;

bool IsNarrow(std::int64_t head_dim) { return head_dim <= kNarrow; }

// Floats of one row's accumulator.
std::int64_t AccWidth(std::int64_t head_dim) { return IsNarrow(head_dim) ? 8 * head_dim : RoundUp(head_dim, 16); }

// acc[d][8 lanes] += p[begin ... n) times values[d][kKeyBlock], key j in lane j % 8. D columns at a time.
template <int D>
void AddValuesByLane(const float* p, const float* values, std::int64_t begin, std::int64_t n, float* acc) {
  __m256 sum[D];
  for (int c = 0; c < D; ++c) sum[c] = _mm256_load_ps(acc + 8 * c);
  std::int64_t j = begin / 8 * 8;
  if (j < begin) {
    const __m256i mask = _mm256_andnot_si256(LaneMask(begin - j), LaneMask(n - j < 8 ? n - j : 8));
    const __m256 weight = Load(p + j, mask);
    for (int c = 0; c < D; ++c) sum[c] = _mm256_fmadd_ps(weight, Load(values + c * kKeyBlock + j, mask), sum[c]);
    j += 8;
  }
  for (; j + 8 <= n; j += 8) {
    const __m256 weight = _mm256_load_ps(p + j);
    for (int c = 0; c < D; ++c) {
      sum[c] = _mm256_fmadd_ps(weight, _mm256_load_ps(values + c * kKeyBlock + j), sum[c]);
    }
  }
  if (j < n) {
    const __m256i mask = LaneMask(n - j);
    const __m256 weight = Load(p + j, mask);
    for (int c = 0; c < D; ++c) sum[c] = _mm256_fmadd_ps(weight, Load(values + c * kKeyBlock + j, mask), sum[c]);
  }
  for (int c = 0; c < D; ++c) _mm256_store_ps(acc + 8 * c, sum[c]);
}

// The same for all columns, eight at a time and then the rest.
void AddNarrowValues(std::int64_t d, const float* p, const float* values, std::int64_t begin, std::int64_t n,
                     float* acc) {
  for (; d >= 8; d -= 8, values += 8 * kKeyBlock, acc += 64) AddValuesByLane<8>(p, values, begin, n, acc);
  switch (d) {
    case 1:
      return AddValuesByLane<1>(p, values, begin, n, acc);
    case 2:
      return AddValuesByLane<2>(p, values, begin, n, acc);
    case 3:
      return AddValuesByLane<3>(p, values, begin, n, acc);
    case 4:
      return AddValuesByLane<4>(p, values, begin, n, acc);
    case 5:
      return AddValuesByLane<5>(p, values, begin, n, acc);
    case 6:
      return AddValuesByLane<6>(p, values, begin, n, acc);
    case 7:
      return AddValuesByLane<7>(p, values, begin, n, acc);
    default:
      return;
  }
}

// Turns n scores of a row into weights exp(score - max) and brings its maximum, sum and accumulator up to
// date.
void OnlineSoftmax(std::int64_t n, std::int64_t acc_width, float* scores, float* max, float* sum, float* acc) {
  const __m256 lowest = _mm256_set1_ps(-__builtin_inff());
  const std::int64_t full = n / 8 * 8;
  const __m256i tail = LaneMask(n - full);
  __m256 top = lowest;
  for (std::int64_t j = 0; j < full; j += 8) top = _mm256_max_ps(top, _mm256_load_ps(scores + j));
  if (full < n) {
    top = _mm256_max_ps(top, _mm256_blendv_ps(lowest, Load(scores + full, tail), _mm256_castsi256_ps(tail)));
  }
  const float block_max = MaxLanes(top);
  if (block_max > *max) {
    const __m256 correction = ExpNonPositive(_mm256_set1_ps(*max - block_max));
    *max = block_max;
    *sum *= _mm256_cvtss_f32(correction);
    for (std::int64_t c = 0; c < acc_width; c += 8) {
      _mm256_store_ps(acc + c, _mm256_mul_ps(_mm256_load_ps(acc + c), correction));
    }
  }
  const __m256 shift = _mm256_set1_ps(*max);
  __m256 total = _mm256_setzero_ps();
  for (std::int64_t j = 0; j < full; j += 8) {
    const __m256 weight = ExpNonPositive(_mm256_sub_ps(_mm256_load_ps(scores + j), shift));
    _mm256_store_ps(scores + j, weight);
    total = _mm256_add_ps(total, weight);
  }
  if (full < n) {
    const __m256 weight = ExpNonPositive(_mm256_sub_ps(Load(scores + full, tail), shift));
    _mm256_maskstore_ps(scores + full, tail, weight);
    total = _mm256_add_ps(total, _mm256_and_ps(weight, _mm256_castsi256_ps(tail)));
  }
  *sum += SumLanes(total);
}

// State of a task's rows, in scratch.
struct Rows {
  float* q;    // [rows][head_dim], scaled
  float* max;  // [rows]
  float* sum;  // [rows]
  float* acc;  // [rows][AccWidth]
};

// Rows row ... row + R - 1 against the keys [first, first + kKeyBlock).
template <int R>
void Tile(const AttentionTask& t, const Rows& rows, std::int64_t row, std::int64_t first, const float* keys,
          const float* values) {
  const std::int64_t d = t.head_dim;
  const std::int64_t width = AccWidth(d);
  // Each row sees keys [begin, n) of this block. Without a window n never falls from row to row.
  std::int64_t begin[R];
  std::int64_t n[R];
  std::int64_t most = 0;
  bool begins_late = false;
  for (int r = 0; r < R; ++r) {
    const std::int64_t visible = t.num_keys + (row + r) / t.group - first;
    n[r] = visible < 0 ? 0 : visible > kKeyBlock ? kKeyBlock : visible;
    begin[r] = t.window == 0 || visible <= t.window ? 0 : visible - t.window;
    begins_late = begins_late || begin[r] > 0;
    if (begin[r] >= n[r]) begin[r] = n[r] = 0;
    if (n[r] > most) most = n[r];
  }
  if (most == 0) return;
  alignas(32) float scores[R * kKeyBlock];
  Scores<R>(rows.q + row * d, d, d, keys, most, scores);
  for (int r = 0; r < R; ++r) {
    if (n[r] == 0) continue;
    // Their weights are 0.
    for (std::int64_t j = 0; j < begin[r]; ++j) scores[r * kKeyBlock + j] = -__builtin_inff();
    OnlineSoftmax(n[r], width, scores + r * kKeyBlock, rows.max + row + r, rows.sum + row + r,
                  rows.acc + (row + r) * width);
  }
  float* acc = rows.acc + row * width;
  if (IsNarrow(d)) {
    for (int r = 0; r < R; ++r) AddNarrowValues(d, scores + r * kKeyBlock, values, begin[r], n[r], acc + r * width);
    return;
  }
  if (begins_late) {
    for (int r = 0; r < R; ++r) {
      AddProducts<1>(scores + r * kKeyBlock, kKeyBlock, 1, values, width, begin[r], n[r], acc + r * width);
    }
    return;
  }
  AddProducts<R>(scores, kKeyBlock, 1, values, width, 0, n[0], acc);
  for (int r = 1; r < R; ++r) {
    AddProducts<1>(scores + r * kKeyBlock, kKeyBlock, 1, values, width, n[0], n[r], acc + r * width);
  }
}

constexpr decltype(&Tile<1>) kTiles[kTileRows] = {&Tile<1>, &Tile<2>, &Tile<3>, &Tile<4>, &Tile<5>, &Tile<6>};

}  // namespace

std::int64_t AttentionScratch(std::int64_t num_rows, std::int64_t head_dim) {
  return RoundUp(num_rows * head_dim, 8) + 2 * RoundUp(num_rows, 8) + num_rows * AccWidth(head_dim) +
         kKeyBlock * head_dim + kKeyBlock * RoundUp(head_dim, 16);
}

void RunAttention(const AttentionTask& t, float* scratch) {
  const std::int64_t d = t.head_dim;
  const std::int64_t width = AccWidth(d);
  const std::int64_t num_rows = t.num_positions * t.group;
  Rows rows;
  rows.q = scratch;
  rows.max = rows.q + RoundUp(num_rows * d, 8);
  rows.sum = rows.max + RoundUp(num_rows, 8);
  rows.acc = rows.sum + RoundUp(num_rows, 8);
  float* const keys = rows.acc + num_rows * width;
  float* const values = keys + kKeyBlock * d;

  for (std::int64_t row = 0; row < num_rows; ++row) {
    const float* q = t.q + row / t.group * t.q_ld + row % t.group * d;
    for (std::int64_t c = 0; c < d; ++c) rows.q[row * d + c] = q[c] * t.scale;
    rows.max[row] = -__builtin_inff();
    rows.sum[row] = 0.0f;
  }
  for (std::int64_t i = 0; i < num_rows * width; i += 8) _mm256_store_ps(rows.acc + i, _mm256_setzero_ps());

  const std::int64_t all_keys = t.num_keys + t.num_positions - 1;
  const std::int64_t first_key = t.window == 0 || t.num_keys <= t.window ? 0 : t.num_keys - t.window;
  for (std::int64_t first = first_key / kKeyBlock * kKeyBlock; first < all_keys; first += kKeyBlock) {
    const std::int64_t n = all_keys - first < kKeyBlock ? all_keys - first : kKeyBlock;
    Transpose(t.k + first * t.k_ld, t.k_ld, n, d, keys, kKeyBlock);
    if (IsNarrow(d)) {
      Transpose(t.v + first * t.v_ld, t.v_ld, n, d, values, kKeyBlock);
    } else {
      CopyRows(t.v + first * t.v_ld, t.v_ld, n, d, 1.0f, values, width);
    }
    for (std::int64_t row = 0; row < num_rows; row += kTileRows) {
      const std::int64_t size = num_rows - row < kTileRows ? num_rows - row : kTileRows;
      kTiles[size - 1](t, rows, row, first, keys, values);
    }
  }

  for (std::int64_t row = 0; row < num_rows; ++row) {
    const std::int64_t position = row / t.group;
    const std::int64_t head = row % t.group;
    float* out = t.out + position * t.out_ld + head * d;
    const float* acc = rows.acc + row * width;
    const float inverse = 1.0f / rows.sum[row];
    for (std::int64_t c = 0; c < d; ++c) {
      out[c] = (IsNarrow(d) ? SumLanes(_mm256_load_ps(acc + 8 * c)) : acc[c]) * inverse;
    }
    if (t.log_sum_exp != nullptr) {
      t.log_sum_exp[position * t.log_sum_exp_ld + head] = rows.max[row] + __builtin_logf(rows.sum[row]);
    }
  }
}

}  // namespace avx2
}  // namespace cpu
}  // namespace qst
