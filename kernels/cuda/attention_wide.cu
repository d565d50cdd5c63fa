// Attention over heads of 17 to 256 on tensor cores.
#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/attention_kernels.h"
#include "kernels/cuda/attention_tiles.cuh"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/numeric.cuh"
#include "kernels/cuda/stream.cuh"

namespace qst {
namespace cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarpSize;
constexpr int kChunk = 8;  // elements in 16 bytes: what is copied and loaded at once

// A block computes a tile of rows of one key-value head; a row is a query position and one of the query heads that
// share the key-value head. A warp has 16 * kRowSteps of the rows. kWidth is a head's width with what pads it.
template <int kWidth_, int kRowSteps_>
struct Geometry {
  static constexpr int kWidth = kWidth_;
  static constexpr int kRowSteps = kRowSteps_;
  static constexpr int kWarpRows = 16 * kRowSteps;
  static constexpr int kRows = kWarps * kWarpRows;
  static constexpr int kKeys = kWidth <= 128 ? 64 : 32;  // of a tile; the same for all kRowSteps
  // Rows in shared memory are an odd number of chunks apart: eight of them lie in different banks.
  static constexpr int kStride = kWidth + kChunk;
  // Queries are read from shared memory once, if registers have room for them.
  static constexpr bool kKeepsQueries = kRowSteps * kWidth <= 128;
  // Then the first values may come to where the queries have been.
  static constexpr bool kSharesTile = kKeepsQueries && kRows == kKeys;
  static constexpr int kSharedElems = ((kSharesTile ? 0 : kRows) + 2 * kKeys) * kStride;
};

template <typename T>
struct WideParameters {
  const T* q;
  const T* k;
  const T* v;
  int q_ld;
  int k_ld;
  int v_ld;
  void* out;  // float or T
  bool is_out_f32;
  std::int64_t out_ld;
  float* log_sum_exp;
  const std::int32_t* q_offsets;
  const std::int32_t* k_offsets;
  int num_sequences;
  int num_heads;
  int group;
  int width;
  float scale;
  float scale_log2;  // for powers of 2
  int window;        // keys that a row sees, in windowed kernels
};

// The same number, of which the compiler does not know: what is computed from it is computed each time, not kept in
// registers, of which these kernels have none to spare.
__device__ __forceinline__ int Recomputed(int x) {
#ifndef QST_CUDA_SHIM
  asm volatile("" : "+r"(x));
#endif
  return x;
}

// Rows [0, kRows) of a head to shared memory: row i + j begins at row_of(i, j), where j is known when compiled. Rows
// from num_rows on are zero, and so is what pads a head.
template <int kRows, int kWidth, typename T, typename RowOf>
__device__ __forceinline__ void LoadTile(int num_rows, int width, T* tile, const RowOf& row_of) {
  constexpr int kStride = kWidth + kChunk;
  constexpr int kChunks = kWidth / kChunk;
  constexpr int kLanes = kChunks & -kChunks;  // threads along a row: the largest power of two that divides kChunks
  constexpr int kStep = kThreads / kLanes;
  const int first_row = threadIdx.x / kLanes;
  const int first_column = threadIdx.x % kLanes * kChunk;
  const SharedAddress target = SharedAddressOf(tile + first_row * kStride + first_column);
#pragma unroll
  for (int i = 0; i < kRows; i += kStep) {
    const T* const row = row_of(first_row, i) + first_column;
#pragma unroll
    for (int j = 0; j < kWidth; j += kLanes * kChunk) {
      CopyAsync16(target + (i * kStride + j) * static_cast<int>(sizeof(T)), row + j,
                  i < num_rows - first_row && j < width - first_column);
    }
  }
}

// Writes a row, given by the four lanes that hold its columns: value(n, i) is column 8 n + 2 t + i of the lane with
// lane % 4 = t. Lanes of rows that are not to be written call it too.
template <int kWidth, typename Out, typename Value>
__device__ __forceinline__ void StoreRow(int width, bool is_row, Out* row, const Value& value) {
  const int t = threadIdx.x % 4;
#pragma unroll
  for (int n = 0; n < kWidth / 8; n += 2) {
    if constexpr (std::is_same_v<Out, float>) {
#pragma unroll
      for (int m = n; m < n + 2; ++m) {
        float2* const two = reinterpret_cast<float2*>(row + m * 8 + t * 2);
        if (is_row && m * 8 < width) *two = make_float2(value(m, 0), value(m, 1));
      }
    } else {
      // Neighbours swap pairs: then each has 4 columns in a row, and the four together 32 bytes.
      const bool is_odd = t % 2 == 1;
      const std::uint32_t first = PackPair<Out>(value(n, 0), value(n, 1));
      const std::uint32_t second = PackPair<Out>(value(n + 1, 0), value(n + 1, 1));
      const std::uint32_t received = __shfl_xor_sync(kAllLanes, is_odd ? first : second, 1);
      const int column = (n + t % 2) * 8 + t / 2 * 4;
      uint2* const four = reinterpret_cast<uint2*>(row + column);
      if (is_row && column < width) *four = is_odd ? make_uint2(received, second) : make_uint2(first, received);
    }
  }
}

// For each row: with running maximum m, sum l and weighted values a, over tiles of keys from the sequence's first on,
//   m' = max(m, max s);  l = l 2^(c (m - m')) + sum 2^(c (s - m'));  a = a 2^(c (m - m')) + sum 2^(c (s - m')) v
// where s = q k and c = scale / ln 2. A row's arithmetic depends neither on other rows nor on how rows are cut into
// tiles. Weights of keys that a row does not see are 0. With a window the tiles begin at the first that a row of the
// block sees; those of its keys that other rows do not see change none of their bits.
template <typename T, int kWidth, int kRowSteps, bool kIsWindowed>
__global__ void __launch_bounds__(kThreads, 2) WideKernel(const WideParameters<T> p) {
  using G = Geometry<kWidth, kRowSteps>;
  constexpr int kStride = G::kStride;
  constexpr int kKeySteps = G::kKeys / 16;
  constexpr int kWidthSteps = kWidth / 16;
  QST_DYNAMIC_SHARED(shared);
  T* const k_tile = reinterpret_cast<T*>(shared);
  T* const v_tile = k_tile + G::kKeys * kStride;
  T* const q_tile = G::kSharesTile ? v_tile : v_tile + G::kKeys * kStride;

  // The last tiles of a sequence see the most keys: they go first.
  const Tile tile = FindTile(p.q_offsets, p.num_sequences, p.group, G::kRows, gridDim.x - 1 - blockIdx.x);
  const int q_begin = p.q_offsets[tile.sequence];
  const int k_begin = p.k_offsets[tile.sequence];
  const int q_length = p.q_offsets[tile.sequence + 1] - q_begin;
  const int k_length = p.k_offsets[tile.sequence + 1] - k_begin;
  const int first_row = static_cast<int>(tile.first_row);
  const int num_rows = min(q_length * p.group - first_row, G::kRows);
  if (num_rows <= 0) return;
  // Of each row: the last key that it sees, its token, and which head of the group it is, -1 behind the last row. Kept
  // in shared memory, since registers are short.
  __shared__ int limits[G::kRows];
  __shared__ int tokens[G::kRows];
  __shared__ int heads[G::kRows];
  if (threadIdx.x < G::kRows) {
    const int i = threadIdx.x;
    const int row = first_row + min(i, num_rows - 1);
    limits[i] = k_length - q_length + row / p.group;
    tokens[i] = q_begin + row / p.group;
    heads[i] = i < num_rows ? row % p.group : -1;
  }
  __syncthreads();
  const int num_keys = limits[G::kRows - 1] + 1;
  const int begin_key = kIsWindowed ? max(0, limits[0] + 1 - p.window) / G::kKeys * G::kKeys : 0;

  const T* const q = p.q + blockIdx.y * p.group * p.width;
  const T* const k = p.k + blockIdx.y * p.width;
  const T* const v = p.v + blockIdx.y * p.width;
  const auto load_rows = [&](const T* head, int ld_, int first_key, T* target) {
    const int ld = Recomputed(ld_);
    LoadTile<G::kKeys, kWidth>(num_keys - first_key, p.width, target, [&](int i, int j) {
      return head + static_cast<std::int64_t>(k_begin + first_key + i) * ld + static_cast<std::int64_t>(j) * ld;
    });
    CopyAsyncCommit();
  };
  LoadTile<G::kRows, kWidth>(num_rows, p.width, q_tile, [&](int i, int j) {
    return q + static_cast<std::int64_t>(tokens[i + j]) * p.q_ld + max(heads[i + j], 0) * p.width;
  });
  load_rows(k, p.k_ld, begin_key, k_tile);

  const int lane = threadIdx.x % kWarpSize;
  const int warp_row = threadIdx.x / kWarpSize * G::kWarpRows;
  const auto step = [](int rows, int columns) { return (rows * kStride + columns) * static_cast<int>(sizeof(T)); };
  // What this lane names of 16 rows x 16 columns, four matrices: rows 0 and 8 on, then the same of columns 8 on.
  const SharedAddress k_lane = SharedAddressOf(k_tile) + step(lane % 16, lane / 16 * kChunk);
  const SharedAddress v_lane = k_lane + static_cast<int>(v_tile - k_tile) * sizeof(T);
  const SharedAddress q_lane = k_lane + static_cast<int>(q_tile - k_tile) * sizeof(T) + step(warp_row, 0);

  std::uint32_t q_kept[kRowSteps][G::kKeepsQueries ? kWidthSteps : 1][4];
  if constexpr (G::kKeepsQueries) {
    CopyAsyncWait<0>();
    __syncthreads();
#pragma unroll
    for (int r = 0; r < kRowSteps; ++r) {
#pragma unroll
      for (int d = 0; d < kWidthSteps; ++d) LoadMatrices(q_kept[r][d], q_lane + step(16 * r, 16 * d));
    }
  }

  float acc[kRowSteps][2 * kWidthSteps][4] = {};
  float row_max[kRowSteps][2];
  float row_sum[kRowSteps][2];  // this lane's share
#pragma unroll
  for (int r = 0; r < kRowSteps; ++r) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      row_max[r][h] = -INFINITY;
      row_sum[r][h] = 0.0f;
    }
  }
  for (int first_key = begin_key; first_key < num_keys; first_key += G::kKeys) {
    CopyAsyncWait<0>();
    __syncthreads();  // The keys are there, and the values' place is free.
    load_rows(v, p.v_ld, first_key, v_tile);

    const bool sees_tile = heads[warp_row] >= 0 && first_key <= limits[warp_row + G::kWarpRows - 1];
    float scores[kRowSteps][2 * kKeySteps][4] = {};
    if (sees_tile) {
#pragma unroll
      for (int d = 0; d < kWidthSteps; ++d) {
        std::uint32_t q_step[kRowSteps][4];
#pragma unroll
        for (int r = 0; r < kRowSteps; ++r) {
          if constexpr (G::kKeepsQueries) {
#pragma unroll
            for (int i = 0; i < 4; ++i) q_step[r][i] = q_kept[r][d][i];
          } else {
            LoadMatrices(q_step[r], q_lane + step(16 * r, 16 * d));
          }
        }
#pragma unroll
        for (int n = 0; n < kKeySteps; ++n) {
          std::uint32_t keys[4];
          LoadMatrices(keys, k_lane + step(16 * n, 16 * d));
#pragma unroll
          for (int r = 0; r < kRowSteps; ++r) {
            Mma<T>(scores[r][2 * n], q_step[r], keys[0], keys[2]);
            Mma<T>(scores[r][2 * n + 1], q_step[r], keys[1], keys[3]);
          }
        }
      }
    }

    CopyAsyncWait<0>();
    __syncthreads();  // The values are there, and the keys' place is free.
    if (first_key + G::kKeys < num_keys) load_rows(k, p.k_ld, first_key + G::kKeys, k_tile);
    if (!sees_tile) continue;

    if (first_key + G::kKeys - 1 > limits[warp_row]) {
#pragma unroll
      for (int r = 0; r < kRowSteps; ++r) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int limit = limits[warp_row + r * 16 + h * 8 + lane / 4] - first_key - lane % 4 * 2;
#pragma unroll
          for (int n = 0; n < 2 * kKeySteps; ++n) {
#pragma unroll
            for (int i = 0; i < 2; ++i) {
              if (n * 8 + i > limit) scores[r][n][2 * h + i] = -INFINITY;
            }
          }
        }
      }
    }

    if constexpr (kIsWindowed) {
#pragma unroll
      for (int r = 0; r < kRowSteps; ++r) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int first_seen = limits[warp_row + r * 16 + h * 8 + lane / 4] + 1 - p.window - first_key - lane % 4 * 2;
#pragma unroll
          for (int n = 0; n < 2 * kKeySteps; ++n) {
#pragma unroll
            for (int i = 0; i < 2; ++i) {
              if (n * 8 + i < first_seen) scores[r][n][2 * h + i] = -INFINITY;
            }
          }
        }
      }
    }

    float correction[kRowSteps][2];
    bool is_corrected = false;
#pragma unroll
    for (int r = 0; r < kRowSteps; ++r) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float new_max = row_max[r][h];
#pragma unroll
        for (int n = 0; n < 2 * kKeySteps; ++n) {
          new_max = fmaxf(new_max, fmaxf(scores[r][n][2 * h], scores[r][n][2 * h + 1]));
        }
        new_max = fmaxf(new_max, __shfl_xor_sync(kAllLanes, new_max, 1));
        new_max = fmaxf(new_max, __shfl_xor_sync(kAllLanes, new_max, 2));
        // In a window's first tile a row may see nothing yet.
        const bool is_blank = kIsWindowed && new_max == -INFINITY;
        correction[r][h] = is_blank ? 1.0f : Exp2(__fmul_rn(row_max[r][h] - new_max, p.scale_log2));
        is_corrected = is_corrected || correction[r][h] != 1.0f;
        row_max[r][h] = new_max;
      }
    }
    if (__any_sync(kAllLanes, is_corrected)) {
#pragma unroll
      for (int r = 0; r < kRowSteps; ++r) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          row_sum[r][h] = __fmul_rn(row_sum[r][h], correction[r][h]);
#pragma unroll
          for (int d = 0; d < 2 * kWidthSteps; ++d) {
            acc[r][d][2 * h] *= correction[r][h];
            acc[r][d][2 * h + 1] *= correction[r][h];
          }
        }
      }
    }

#pragma unroll
    for (int n = 0; n < kKeySteps; ++n) {
      std::uint32_t weights[kRowSteps][4];
#pragma unroll
      for (int r = 0; r < kRowSteps; ++r) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int h = i % 2;
          const bool is_blank = kIsWindowed && row_max[r][h] == -INFINITY;
          const float shift = is_blank ? 0.0f : __fmul_rn(-row_max[r][h], p.scale_log2);
          const float* const pair = &scores[r][2 * n + i / 2][2 * h];
          const float first = Exp2(__fmaf_rn(pair[0], p.scale_log2, shift));
          const float second = Exp2(__fmaf_rn(pair[1], p.scale_log2, shift));
          row_sum[r][h] += first;
          row_sum[r][h] += second;
          weights[r][i] = PackPair<T>(first, second);
        }
      }
#pragma unroll
      for (int d = 0; d < kWidthSteps; ++d) {
        std::uint32_t values[4];
        LoadMatricesTransposed(values, v_lane + step(16 * n, 16 * d));
#pragma unroll
        for (int r = 0; r < kRowSteps; ++r) {
          Mma<T>(acc[r][2 * d], weights[r], values[0], values[1]);
          Mma<T>(acc[r][2 * d + 1], weights[r], values[2], values[3]);
        }
      }
    }
  }
  if (heads[warp_row] < 0) return;

#pragma unroll
  for (int r = 0; r < kRowSteps; ++r) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float sum = row_sum[r][h];
      sum += __shfl_xor_sync(kAllLanes, sum, 1);
      sum += __shfl_xor_sync(kAllLanes, sum, 2);
      const float inverse = 1.0f / sum;
      const int row = warp_row + r * 16 + h * 8 + lane / 4;
      const bool is_row = heads[row] >= 0;
      const std::int64_t token = tokens[row];
      const int head = blockIdx.y * p.group + max(heads[row], 0);
      if (is_row && p.log_sum_exp != nullptr && lane % 4 == 0) {
        p.log_sum_exp[token * p.num_heads + head] = fmaf(row_max[r][h], p.scale, logf(sum));
      }
      const auto value = [&](int n, int i) { return acc[r][n][2 * h + i] * inverse; };
      const std::int64_t first = token * p.out_ld + head * p.width;
      if (p.is_out_f32) {
        StoreRow<kWidth>(p.width, is_row, static_cast<float*>(p.out) + first, value);
      } else {
        StoreRow<kWidth>(p.width, is_row, static_cast<T*>(p.out) + first, value);
      }
    }
  }
}

template <typename T, int kWidth, int kRowSteps, bool kIsWindowed = false>
absl::Status LaunchWide(Stream& stream, const AttentionOperands& x, const WideParameters<T>& p) {
  using G = Geometry<kWidth, kRowSteps>;
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(NumTileSlots(x.q.rows, p.group, G::kRows, x.q_offsets.num)),
                    static_cast<unsigned>(x.shape.num_kv_heads));
  shape.block = dim3(kThreads);
  shape.dynamic_shared_bytes = G::kSharedElems * sizeof(T);
  return Launch(stream, shape, WideKernel<T, kWidth, kRowSteps, kIsWindowed>, p);
}

template <typename T>
absl::Status WideAttentionOf(Stream& stream, const AttentionOperands& x) {
  const std::int64_t width = x.shape.head_dim;
  WideParameters<T> p;
  p.q = x.q.row<T>(0);
  p.k = x.k.row<T>(0);
  p.v = x.v.row<T>(0);
  p.q_ld = static_cast<int>(x.q.ld);
  p.k_ld = static_cast<int>(x.k.ld);
  p.v_ld = static_cast<int>(x.v.ld);
  p.out = x.out.data;
  p.is_out_f32 = x.out.dtype == DType::kF32;
  p.out_ld = x.out.ld;
  p.log_sum_exp = x.log_sum_exp;
  p.q_offsets = x.q_offsets.offsets;
  p.k_offsets = x.k_offsets.offsets;
  p.num_sequences = static_cast<int>(x.q_offsets.num);
  p.num_heads = static_cast<int>(x.shape.num_heads);
  p.group = static_cast<int>(x.shape.num_heads / x.shape.num_kv_heads);
  p.width = static_cast<int>(width);
  p.scale = x.shape.scale;
  p.scale_log2 = x.shape.scale * kLog2E;
  p.window = WindowOf(x.shape);
  if (p.window != 0) {
    if (width <= 32) return LaunchWide<T, 32, 1, true>(stream, x, p);
    if (width <= 64) return LaunchWide<T, 64, 1, true>(stream, x, p);
    if (width <= 96) return LaunchWide<T, 96, 1, true>(stream, x, p);
    if (width <= 128) return LaunchWide<T, 128, 1, true>(stream, x, p);
    if (width <= 192) return LaunchWide<T, 192, 1, true>(stream, x, p);
    return LaunchWide<T, 256, 1, true>(stream, x, p);
  }

  // Twice the rows of a block read keys and values from shared memory half as often, where sequences have that many
  // rows and a multiprocessor has memory for two such blocks. The result has the same bits.
  int shared_bytes = 0;
  QST_CUDA_RETURN_IF_ERROR(
      cudaDeviceGetAttribute(&shared_bytes, cudaDevAttrMaxSharedMemoryPerMultiprocessor, stream.device->ordinal()));
  const bool is_long = x.q.rows * p.group > 64 * x.q_offsets.num;
  const bool is_large = is_long && (width <= 64 || shared_bytes >= 200 << 10);
  if (width <= 32) return is_large ? LaunchWide<T, 32, 2>(stream, x, p) : LaunchWide<T, 32, 1>(stream, x, p);
  if (width <= 64) return is_large ? LaunchWide<T, 64, 2>(stream, x, p) : LaunchWide<T, 64, 1>(stream, x, p);
  if (width <= 96) return is_large ? LaunchWide<T, 96, 2>(stream, x, p) : LaunchWide<T, 96, 1>(stream, x, p);
  if (width <= 128) return is_large ? LaunchWide<T, 128, 2>(stream, x, p) : LaunchWide<T, 128, 1>(stream, x, p);
  if (width <= 192) return LaunchWide<T, 192, 1>(stream, x, p);
  return LaunchWide<T, 256, 1>(stream, x, p);
}

}  // namespace

absl::Status WideAttention(Stream& stream, const AttentionOperands& x) {
  return x.q.dtype == DType::kBF16 ? WideAttentionOf<BF16>(stream, x) : WideAttentionOf<F16>(stream, x);
}

}  // namespace cuda
}  // namespace qst
