#include "kernels/cpu/gemm/gemm.h"

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>

#include "kernels/cpu/gemm/pack_right.h"

namespace qst {
namespace cpu {
namespace {

// Blocks of k. Long ones save passes over C; a left panel of one should fit the first-level cache.
constexpr std::int64_t kDepthBlock = 768;
// With few rows, B panels are used once or twice: then they should stay in the first-level cache.
constexpr std::int64_t kDepthBlockFewRows = 128;
// Bytes of B that a task holds unpacked: part of a second-level cache.
constexpr std::int64_t kRightBytes = 256 << 10;
// Elements of A that are held packed at a time.
constexpr std::int64_t kLeftElems = 4 << 20;
// Fewer multiply-adds than this are not worth waking threads for.
constexpr std::int64_t kMinParallelWork = 64 << 10;
// Rows of C that a task has at least, where cutting by columns alone gives too few tasks: each cut by rows
// unpacks B once more.
constexpr std::int64_t kMinTaskRows = 128;
constexpr std::int64_t kTasksPerThread = 4;

std::int64_t CeilDiv(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }
std::int64_t RoundUp(std::int64_t a, std::int64_t b) { return CeilDiv(a, b) * b; }

// Floats on a cache line of their own, uninitialized.
class Buffer {
 public:
  explicit Buffer(std::int64_t elems)
      : data_(static_cast<float*>(std::aligned_alloc(64, RoundUp(std::max<std::int64_t>(elems, 1) * 4, 64)))) {
    if (data_ == nullptr) throw std::bad_alloc();
  }
  float* data() const { return data_.get(); }

 private:
  struct Free {
    void operator()(float* p) const { std::free(p); }
  };
  std::unique_ptr<float, Free> data_;
};

// One product, cut into tasks.
class Product {
 public:
  Product(ThreadPool* threads, const GemmKernels& kernels, const LeftOperand& left, const RightOperand& right,
          const float* bias, const MatrixView& c, bool accumulate)
      : threads_(*threads),
        kernels_(kernels),
        left_(left),
        right_(right),
        bias_(bias),
        c_(c),
        accumulate_(accumulate),
        depth_(left.is_transposed ? left.matrix.rows : left.matrix.cols) {
    const std::int64_t max_block = c.rows <= kernels.mr ? kDepthBlockFewRows : kDepthBlock;
    const std::int64_t num_blocks = CeilDiv(depth_, max_block);
    block_ = num_blocks <= 1 ? std::max<std::int64_t>(depth_, 1) : RoundUp(CeilDiv(depth_, num_blocks), kDepthUnit);
  }

  void Run() {
    // Packed A is bounded, whatever the shape: chunks of rows, then chunks of k.
    const std::int64_t rows_per_chunk =
        RoundUp(std::max<std::int64_t>(512, kLeftElems / std::clamp<std::int64_t>(depth_, 1, 1024)), kernels_.mr);
    const std::int64_t max_rows = std::min(rows_per_chunk, c_.rows);
    const std::int64_t blocks_per_chunk = std::max<std::int64_t>(1, kLeftElems / (max_rows * block_));
    const std::int64_t depth_per_chunk = blocks_per_chunk * block_;
    const Buffer packed_left(max_rows * std::min(depth_per_chunk, depth_));
    for (std::int64_t row = 0; row < c_.rows; row += rows_per_chunk) {
      chunk_.row_begin = row;
      chunk_.row_end = std::min(c_.rows, row + rows_per_chunk);
      // At least once, since k = 0 has a result, too.
      std::int64_t k = 0;
      do {
        chunk_.k_begin = k;
        chunk_.k_end = std::min(depth_, k + depth_per_chunk);
        chunk_.left = packed_left.data();
        RunChunk();
        k = chunk_.k_end;
      } while (k < depth_);
    }
  }

 private:
  struct Chunk {
    std::int64_t row_begin, row_end;
    std::int64_t k_begin, k_end;
    float* left;  // panel p of mr rows at p * mr * (k_end - k_begin)
  };

  std::int64_t chunk_rows() const { return chunk_.row_end - chunk_.row_begin; }
  std::int64_t chunk_depth() const { return chunk_.k_end - chunk_.k_begin; }
  float* LeftPanel(std::int64_t panel) const { return chunk_.left + panel * kernels_.mr * chunk_depth(); }
  int PanelRows(std::int64_t panel) const {
    return static_cast<int>(std::min<std::int64_t>(kernels_.mr, chunk_rows() - panel * kernels_.mr));
  }

  void PackLeftPanel(std::int64_t panel) const {
    const ConstMatrixView& a = left_.matrix;
    const std::int64_t row = chunk_.row_begin + panel * kernels_.mr;
    const int rows = PanelRows(panel);
    const char* base = static_cast<const char*>(a.data);
    const int elem_bytes = DTypeBytes(a.dtype);
    if (left_.is_transposed) {
      kernels_.pack_cols(a.dtype, base + (chunk_.k_begin * a.ld + row) * elem_bytes, a.ld, chunk_depth(), rows, rows,
                         LeftPanel(panel));
    } else {
      kernels_.pack_rows(a.dtype, base + (row * a.ld + chunk_.k_begin) * elem_bytes, a.ld, rows, chunk_depth(), rows,
                         LeftPanel(panel));
    }
  }

  void RunChunk() {
    const int nr = kernels_.nr;
    const std::int64_t num_left_panels = CeilDiv(chunk_rows(), kernels_.mr);
    const std::int64_t num_right_panels = CeilDiv(c_.cols, nr);
    const bool is_parallel = chunk_rows() * c_.cols * chunk_depth() >= kMinParallelWork;

    if (chunk_depth() > 0) {
      const std::int64_t panel_elems = kernels_.mr * chunk_depth();
      const std::int64_t grain = is_parallel ? CeilDiv(16 << 10, panel_elems) : num_left_panels;
      threads_.ParallelFor(num_left_panels, grain, [this](std::int64_t begin, std::int64_t end) {
        for (std::int64_t panel = begin; panel < end; ++panel) PackLeftPanel(panel);
      });
    }

    // Columns first; rows too where that leaves threads without work.
    const std::int64_t wanted_tasks = is_parallel ? threads_.num_threads() * kTasksPerThread : 1;
    const std::int64_t panel_bytes = nr * std::min(block_, std::max<std::int64_t>(1, chunk_depth())) * 4;
    const std::int64_t panels_per_task = std::clamp<std::int64_t>(
        CeilDiv(num_right_panels, wanted_tasks), 1, std::max<std::int64_t>(1, kRightBytes / panel_bytes));
    const std::int64_t col_tasks = CeilDiv(num_right_panels, panels_per_task);
    const std::int64_t row_tasks = std::clamp<std::int64_t>(chunk_rows() / kMinTaskRows, 1,
                                                            std::max<std::int64_t>(1, CeilDiv(wanted_tasks, col_tasks)));
    const std::int64_t left_panels_per_task = CeilDiv(num_left_panels, row_tasks);
    const std::int64_t num_tasks = col_tasks * row_tasks;
    threads_.ParallelFor(num_tasks, is_parallel ? 1 : num_tasks, [&](std::int64_t begin, std::int64_t end) {
      const Buffer packed_right(panels_per_task * panel_bytes / 4);
      for (std::int64_t task = begin; task < end; ++task) {
        const std::int64_t first_right = task / row_tasks * panels_per_task;
        const std::int64_t first_left = task % row_tasks * left_panels_per_task;
        RunTask(first_left, std::min(num_left_panels, first_left + left_panels_per_task), first_right,
                std::min(num_right_panels, first_right + panels_per_task), packed_right.data());
      }
    });
  }

  // The tiles of some left panels x some right panels.
  void RunTask(std::int64_t left_begin, std::int64_t left_end, std::int64_t right_begin, std::int64_t right_end,
               float* packed_right) const {
    const int nr = kernels_.nr;
    std::int64_t k = chunk_.k_begin;
    do {
      const std::int64_t k_end = std::min(chunk_.k_end, k + block_);
      const std::int64_t depth = k_end - k;
      for (std::int64_t panel = right_begin; panel < right_end; ++panel) {
        const int cols = static_cast<int>(std::min<std::int64_t>(nr, c_.cols - panel * nr));
        PackRight(kernels_, right_, k, k_end, panel * nr, cols, packed_right + (panel - right_begin) * nr * depth);
      }
      for (std::int64_t left = left_begin; left < left_end; ++left) {
        const int rows = PanelRows(left);
        const float* a = LeftPanel(left) + (k - chunk_.k_begin) * rows;
        for (std::int64_t panel = right_begin; panel < right_end; ++panel) {
          RunTile(chunk_.row_begin + left * kernels_.mr, rows, panel, depth, a,
                  packed_right + (panel - right_begin) * nr * depth, k == 0);
        }
      }
      k = k_end;
    } while (k < chunk_.k_end);
  }

  // `is_first`: the block starts the chain of its elements.
  void RunTile(std::int64_t row, int rows, std::int64_t panel, std::int64_t depth, const float* a, const float* b,
               bool is_first) const {
    const int nr = kernels_.nr;
    const std::int64_t col = panel * nr;
    const int cols = static_cast<int>(std::min<std::int64_t>(nr, c_.cols - col));
    const bool load_c = accumulate_ || !is_first;
    const float* bias = is_first && bias_ != nullptr ? bias_ + col : nullptr;
    float* c = c_.row<float>(row) + col;
    if (cols % kernels_.lanes == 0) {
      kernels_.multiply(rows, cols, depth, a, b, bias, load_c, c, c_.ld);
      return;
    }
    // A narrow last tile is computed at full width beside C, in the same order per element.
    alignas(64) float tile[kMaxMr * kMaxNr];
    alignas(64) float padded_bias[kMaxNr] = {};
    const int padded_cols = static_cast<int>(RoundUp(cols, kernels_.lanes));
    for (int i = 0; i < rows; ++i) {
      float* to = tile + i * padded_cols;
      if (load_c) std::copy(c + i * c_.ld, c + i * c_.ld + cols, to);
      std::fill(to + (load_c ? cols : 0), to + padded_cols, 0.0f);
    }
    if (bias != nullptr) std::copy(bias, bias + cols, padded_bias);
    kernels_.multiply(rows, padded_cols, depth, a, b, bias == nullptr ? nullptr : padded_bias, load_c, tile,
                      padded_cols);
    for (int i = 0; i < rows; ++i) {
      std::copy(tile + i * padded_cols, tile + i * padded_cols + cols, c + i * c_.ld);
    }
  }

  ThreadPool& threads_;
  const GemmKernels& kernels_;
  const LeftOperand& left_;
  const RightOperand& right_;
  const float* bias_;
  const MatrixView& c_;
  const bool accumulate_;
  const std::int64_t depth_;
  std::int64_t block_;  // elements of k that are multiplied between two passes over C
  Chunk chunk_ = {};
};

}  // namespace

void Gemm(ThreadPool* threads, const GemmKernels& kernels, const LeftOperand& left, const RightOperand& right,
          const float* bias, const MatrixView& c, bool accumulate) {
  if (c.empty()) return;
  Product(threads, kernels, left, right, bias, c, accumulate).Run();
}

bool HasAvx512() {
  // With AVX2's file-mates: FMA and F16C come with every processor that has AVX-512.
  static const bool has = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx2");
  return has;
}

const GemmKernels& GemmKernelsFor(CpuIsa isa) {
  if (isa != CpuIsa::kAvx2) return kPortableGemmKernels;
  return HasAvx512() ? kAvx512GemmKernels : kAvx2GemmKernels;
}

}  // namespace cpu
}  // namespace qst
