#include <cuda_runtime.h>

#include <cstdint>
#include <limits>
#include <type_traits>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/cuda/numeric.cuh"
#include "kernels/cuda/quant4.cuh"
#include "kernels/cuda/quant4.h"
#include "kernels/cuda/stream.cuh"
#include "kernels/cuda/vector_io.cuh"
#include "kernels/quant/codes.h"
#include "kernels/quant/quant4.h"
#include "proto/support/status_macros.h"

namespace qst {
namespace cuda {
namespace {

constexpr int kThreads = 256;

bool IsPowerOfTwo(int n) { return n > 0 && (n & (n - 1)) == 0; }

int Log2(int power_of_two) {
  int shift = 0;
  while ((1 << shift) < power_of_two) ++shift;
  return shift;
}

// ---- Dequantize: value(e) = table[code(e)] * absmax(e / block_size) -----------------------------------------------

// Eight elements, one 32-bit word of codes, make 16 bytes of bf16: neighbouring threads read and write neighbouring
// memory. Each thread does kWordsPerThread of them, so that enough loads are on their way.
constexpr int kWordElems = 8;
constexpr int kWordsPerThread = 4;
constexpr int kBlockWords = kThreads * kWordsPerThread;

// The code table, once for each bank of shared memory, so that lanes never wait for each other.
__device__ __forceinline__ void FillTable(const Quant4Operand& w, float (&table)[16][kWarpSize]) {
  for (int i = threadIdx.x; i < 16 * kWarpSize; i += kThreads)
    table[i / kWarpSize][i % kWarpSize] = w.table[i / kWarpSize];
  __syncthreads();
}

// Elements [begin, begin + 8 * num_words) of the flat sequence to contiguous memory; begin and the block size are
// multiples of 8, so a word lies in one block.
template <typename Out>
__global__ void __launch_bounds__(kThreads)
    DequantizeFlatKernel(Quant4Operand w, std::int64_t begin, std::int64_t num_words, Out* out) {
  __shared__ float table[16][kWarpSize];
  const unsigned* const words = reinterpret_cast<const unsigned*>(w.view.packed + begin / 2);
  const int lane = threadIdx.x % kWarpSize;
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * kBlockWords + threadIdx.x;
  // All loads of a step are on their way before the next step waits for them. Beyond the end the last word stands in.
  unsigned codes[kWordsPerThread];
  std::int64_t blocks[kWordsPerThread];
  float absmax[kWordsPerThread];
#pragma unroll
  for (int i = 0; i < kWordsPerThread; ++i) {
    const std::int64_t word = min(first + i * kThreads, num_words - 1);
    codes[i] = __ldcs(words + word);
    blocks[i] = BlockOfElement(w, begin + word * kWordElems);
  }
  if (w.view.absmax_codes == nullptr) {
#pragma unroll
    for (int i = 0; i < kWordsPerThread; ++i) absmax[i] = __ldg(w.view.absmax + blocks[i]);
    FillTable(w, table);
  } else {
    int absmax_codes[kWordsPerThread];
#pragma unroll
    for (int i = 0; i < kWordsPerThread; ++i) {
      absmax_codes[i] = __ldg(w.view.absmax_codes + blocks[i]);
      absmax[i] = __ldg(w.view.nested_absmax + (blocks[i] >> w.nested_shift));
    }
    FillTable(w, table);
#pragma unroll
    for (int i = 0; i < kWordsPerThread; ++i) {
      absmax[i] = UnnestAbsmax(__ldg(w.view.nested_map + absmax_codes[i]), absmax[i], w.view.nested_offset);
    }
  }
#pragma unroll
  for (int i = 0; i < kWordsPerThread; ++i) {
    const std::int64_t word = first + i * kThreads;
    if (word >= num_words) break;
    float values[kWordElems];
#pragma unroll
    for (int j = 0; j < kWordElems; ++j) {
      // Byte j / 2, its high nibble first.
      const unsigned code = codes[i] >> (8 * (j / 2) + (j % 2 == 0 ? 4 : 0)) & 15u;
      values[j] = __fmul_rn(table[code][lane], absmax[i]);
    }
    Store8(values, out + word * kWordElems);
  }
}

// Any shape, alignment and block size: eight columns of a row a thread, byte by byte.
template <typename Out>
__global__ void __launch_bounds__(kThreads)
    DequantizeAnyKernel(Quant4Operand w, std::int64_t row_begin, std::int64_t rows, Out* out, std::int64_t ld) {
  __shared__ float table[16][kWarpSize];
  FillTable(w, table);
  const std::int64_t cols = w.view.cols;
  const std::int64_t words_per_row = CeilDiv(cols, kWordElems);
  const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (index >= rows * words_per_row) return;
  const std::int64_t row = index / words_per_row;
  const std::int64_t col_begin = index % words_per_row * kWordElems;
  const std::int64_t col_end = min(cols, col_begin + kWordElems);
  std::int64_t block = -1;
  float absmax = 0.0f;
  for (std::int64_t col = col_begin; col < col_end; ++col) {
    const std::int64_t element = (row_begin + row) * cols + col;
    if (BlockOfElement(w, element) != block) {
      block = BlockOfElement(w, element);
      absmax = BlockAbsmax(w, block);
    }
    out[row * ld + col] = FromFloat<Out>(__fmul_rn(table[CodeOfElement(w, element)][threadIdx.x % kWarpSize], absmax));
  }
}

// ---- Quantize: code(e) = rank of x(e) * (1 / absmax) among the thresholds -------------------------------------------

// kernels/quant's Quant4Rule, passed by value.
struct RuleOperand {
  float thresholds[15] = {};
  std::uint8_t code_of_rank[16] = {};
  std::uint8_t sign = 0;
};

RuleOperand MakeRuleOperand(Quant4Type type) {
  const Quant4Rule rule = Quant4RuleOf(type);
  RuleOperand operand;
  // A threshold that nothing is above leaves the rank alone.
  for (float& threshold : operand.thresholds) threshold = std::numeric_limits<float>::infinity();
  for (int i = 0; i < rule.num_thresholds; ++i) operand.thresholds[i] = rule.thresholds[i];
  for (int i = 0; i <= rule.num_thresholds; ++i) operand.code_of_rank[i] = rule.code_of_rank[i];
  operand.sign = rule.sign;
  return operand;
}

// kOfMagnitude: Quant4Rule's of_magnitude.
template <bool kOfMagnitude>
__device__ __forceinline__ unsigned CodeOf(const RuleOperand& rule, const std::uint8_t* code_of_rank, float x) {
  constexpr int kNumThresholds = kOfMagnitude ? 7 : 15;
  const float ranked = kOfMagnitude ? fabsf(x) : x;
  int rank = 0;
#pragma unroll
  for (int i = 0; i < kNumThresholds; ++i) rank += ranked > rule.thresholds[i] ? 1 : 0;
  return code_of_rank[rank] + (x < 0.0f ? rule.sign : 0u);
}

// A warp a block of block_size elements; a lane makes whole bytes, two elements each.
template <typename X, bool kOfMagnitude>
__global__ void __launch_bounds__(kThreads)
    QuantizeKernel(const X* weights, std::int64_t num_elems, int block_size, const __grid_constant__ RuleOperand rule,
                   std::uint8_t* packed, float* absmax) {
  __shared__ std::uint8_t code_of_rank[16];
  if (threadIdx.x < 16) code_of_rank[threadIdx.x] = rule.code_of_rank[threadIdx.x];
  __syncthreads();
  const int lane = threadIdx.x % kWarpSize;
  const std::int64_t block = static_cast<std::int64_t>(blockIdx.x) * (kThreads / kWarpSize) + threadIdx.x / kWarpSize;
  const std::int64_t begin = block * block_size;
  if (begin >= num_elems) return;  // The whole warp.
  const std::int64_t end = min(num_elems, begin + block_size);
  const auto load = [&](std::int64_t e) { return ToFloat(weights[e]); };

  float largest = 0.0f;
  bool is_finite = true;
  for (std::int64_t e = begin + 2 * lane; e < end; e += 2 * kWarpSize) {
    const float first = fabsf(load(e));
    const float second = e + 1 < end ? fabsf(load(e + 1)) : 0.0f;
    // Not finite: infinite, or a NaN, which no comparison holds for.
    is_finite = is_finite && first <= 3.402823466e38f && second <= 3.402823466e38f;
    largest = fmaxf(largest, fmaxf(first, second));
  }
  largest = WarpMax(largest);
  is_finite = __all_sync(kAllLanes, is_finite) != 0;
  if (lane == 0) absmax[block] = is_finite ? largest : __int_as_float(0x7fffffff);
  // Never infinite, so that zeros among zeros get the code of zero.
  const float inverse = fminf(__fdiv_rn(1.0f, largest), 3.402823466e38f);
  for (std::int64_t e = begin + 2 * lane; e < end; e += 2 * kWarpSize) {
    const unsigned high = CodeOf<kOfMagnitude>(rule, code_of_rank, __fmul_rn(load(e), inverse));
    const float second = e + 1 < end ? __fmul_rn(load(e + 1), inverse) : 0.0f;
    const unsigned low = CodeOf<kOfMagnitude>(rule, code_of_rank, second);
    packed[e / 2] = static_cast<std::uint8_t>(high << 4 | low);
  }
}

}  // namespace

absl::Status CheckQuant4ForCuda(const Quant4View& view) {
  QST_RETURN_IF_ERROR(CheckQuant4View(view));
  if (IsPowerOfTwo(view.block_size) && (view.absmax_codes == nullptr || IsPowerOfTwo(view.nested_block_size))) {
    return absl::OkStatus();
  }
  return absl::UnimplementedError(absl::StrCat("4-bit weight on CUDA: block sizes ", view.block_size, " and ",
                                               view.nested_block_size, " must be powers of two"));
}

Quant4Operand MakeQuant4Operand(const Quant4View& view) {
  Quant4Operand w;
  w.view = view;
  w.block_shift = Log2(view.block_size);
  w.nested_shift = Log2(view.nested_block_size);
  const float* const table = Quant4Table(view.type);
  for (int code = 0; code < 16; ++code) w.table[code] = table[code];
  return w;
}

absl::Status DequantizeOn(Stream& stream, cudaStream_t handle, const Quant4View& w, std::int64_t row_begin,
                          const MatrixView& out) {
  if (out.empty()) return absl::OkStatus();
  const Quant4Operand operand = MakeQuant4Operand(w);
  const std::int64_t begin = row_begin * w.cols;
  const std::int64_t num_elems = out.rows * w.cols;
  const bool is_flat = (out.ld == w.cols || out.rows == 1) && begin % kWordElems == 0 && num_elems % kWordElems == 0 &&
                       w.block_size % kWordElems == 0 && IsAligned(w.packed, 4) && IsAligned(out.data);
  return DispatchFloat(out.dtype, [&](auto* tag) {
    using Out = std::remove_pointer_t<decltype(tag)>;
    LaunchShape shape;
    shape.block = dim3(kThreads);
    if (is_flat) {
      const std::int64_t num_words = num_elems / kWordElems;
      shape.grid = dim3(static_cast<unsigned>(CeilDiv(num_words, kBlockWords)));
      return LaunchOn(handle, shape, DequantizeFlatKernel<Out>, operand, begin, num_words, out.row<Out>(0));
    }
    shape.grid = dim3(static_cast<unsigned>(CeilDiv(out.rows * CeilDiv(w.cols, kWordElems), kThreads)));
    return LaunchOn(handle, shape, DequantizeAnyKernel<Out>, operand, row_begin, out.rows, out.row<Out>(0), out.ld);
  });
}

absl::Status Dequantize(Stream& stream, const Quant4View& w, std::int64_t row_begin, const MatrixView& out) {
  QST_RETURN_IF_ERROR(CheckQuant4ForCuda(w));
  if (row_begin < 0 || out.rows < 0 || row_begin > w.rows - out.rows || out.cols != w.cols) {
    return absl::InvalidArgumentError(absl::StrCat("Dequantize: out is [", out.rows, ", ", out.cols, "] from row ",
                                                   row_begin, " of a weight [", w.rows, ", ", w.cols, "]"));
  }
  return DequantizeOn(stream, stream.handle, w, row_begin, out);
}

absl::Status Quantize4Bit(Stream& stream, const ConstMatrixView& weights, Quant4Type type, int block_size,
                          std::uint8_t* packed, float* absmax) {
  QST_RETURN_IF_ERROR(CheckQuant4BlockSize(block_size));
  if (weights.rows < 0 || weights.cols < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("Quantize4Bit: weight has shape [", weights.rows, ", ", weights.cols, "]"));
  }
  if (weights.empty()) return absl::OkStatus();
  if (weights.rows > 1 && weights.ld != weights.cols) {
    return absl::InvalidArgumentError(absl::StrCat("Quantize4Bit: rows of ", weights.cols, " weights lie ", weights.ld,
                                                   " apart, need them without gaps"));
  }
  stream.unpack_must_wait = true;
  const RuleOperand rule = MakeRuleOperand(type);
  const std::int64_t num_elems = weights.rows * weights.cols;
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(CeilDiv(CeilDiv(num_elems, block_size), kThreads / kWarpSize)));
  shape.block = dim3(kThreads);
  return DispatchFloat(weights.dtype, [&](auto* tag) {
    using X = std::remove_pointer_t<decltype(tag)>;
    return Launch(stream, shape, Quant4RuleOf(type).of_magnitude ? QuantizeKernel<X, true> : QuantizeKernel<X, false>,
                  weights.row<X>(0), num_elems, block_size, rule, packed, absmax);
  });
}

}  // namespace cuda
}  // namespace qst
