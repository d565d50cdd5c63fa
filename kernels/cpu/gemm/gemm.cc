#include "kernels/cpu/gemm/gemm.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <new>

#include "kernels/cpu/gemm/pack_right.h"

namespace qst {
namespace cpu {
namespace {

// Blocks of k. Long ones save passes over C; a tile's rows of one should fit the first-level cache.
constexpr std::int64_t kDepthBlock = 768;
// With few rows, B panels are used once or twice: then they should stay in the first-level cache.
constexpr std::int64_t kDepthBlockFewRows = 128;
// Bytes of B that a task holds unpacked: part of a second-level cache.
constexpr std::int64_t kRightBytes = 256 << 10;
// Elements of A that are held converted or packed at a time, where tasks share them.
constexpr std::int64_t kLeftElems = 4 << 20;
// With this many tasks side by side, or fewer, each converts rows of A for itself.
constexpr std::int64_t kConvertingTasks = 2;
// A transposed A whose rows are at least this long (elements) is packed: a tile reads few elements of each
// row, so most of what it touches, cache lines and pages, would be wasted once for every panel of B.
constexpr std::int64_t kPackedLeftLd = 256;
// Fewer multiply-adds than this are not worth waking threads for.
constexpr std::int64_t kMinParallelWork = 64 << 10;
// Rows of C that a task has at least, where cutting by columns alone gives too few tasks: each cut by rows
// unpacks B once more.
constexpr std::int64_t kMinTaskRows = 128;
constexpr std::int64_t kTasksPerThread = 4;

std::int64_t CeilDiv(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }
std::int64_t RoundUp(std::int64_t a, std::int64_t b) { return CeilDiv(a, b) * b; }

// Floats from a cache line's begin on, uninitialized.
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

// out[rows, depth] = rows [row, row + rows), columns [k, k + depth) of m, in float32.
void ConvertRows(const GemmKernels& kernels, const ConstMatrixView& m, std::int64_t row, std::int64_t rows,
                 std::int64_t k, std::int64_t depth, float* out) {
  const char* source = static_cast<const char*>(m.data) + (row * m.ld + k) * DTypeBytes(m.dtype);
  kernels.pack_cols(m.dtype, source, m.ld, rows, static_cast<int>(depth), static_cast<int>(depth), out);
}

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
    static_assert(kSumTerms % kDepthUnit == 0 && kDepthBlockFewRows % kSumTerms == 0 && kDepthBlock % kSumTerms == 0);
    block_ = num_blocks <= 1 ? std::max<std::int64_t>(depth_, 1) : RoundUp(CeilDiv(depth_, num_blocks), kSumTerms);
    PlanTasks();
  }

  void Run() {
    const bool is_shared = col_tasks_ > kConvertingTasks &&
                           (left_.is_transposed ? left_.matrix.ld >= kPackedLeftLd : left_.matrix.dtype != DType::kF32);
    if (!is_shared) {
      RunRows({left_.matrix, left_.is_transposed ? Layout::kTransposed : Layout::kRows}, c_);
      return;
    }
    const std::int64_t depth = std::max<std::int64_t>(1, depth_);
    const std::int64_t chunk = RoundUp(std::max<std::int64_t>(512, kLeftElems / depth), kernels_.mr);
    const Buffer buffer(std::min(chunk, c_.rows) * depth);
    for (std::int64_t begin = 0; begin < c_.rows; begin += chunk) {
      const std::int64_t rows = std::min(chunk, c_.rows - begin);
      const std::int64_t grain = RoundUp(CeilDiv(16 << 10, depth), kernels_.mr);
      threads_.ParallelFor(rows, grain, [&](std::int64_t first, std::int64_t last) {
        float* out = buffer.data() + first * depth_;
        if (left_.is_transposed) {
          PackTiles(begin + first, last - first, out);
        } else {
          ConvertRows(kernels_, left_.matrix, begin + first, last - first, 0, depth_, out);
        }
      });
      const ConstMatrixView matrix = Matrix(static_cast<const float*>(buffer.data()), rows, depth_);
      RunRows({matrix, left_.is_transposed ? Layout::kTiles : Layout::kRows}, Rows(c_, begin, begin + rows));
    }
  }

 private:
  enum class Layout {
    kRows,        // as A
    kTransposed,  // as A^T
    kTiles,       // for each mr rows of A, fewer in the last tile, those rows transposed
  };
  struct Left {
    ConstMatrixView matrix;
    Layout layout;
  };

  // Columns first; rows too where that leaves threads without work.
  void PlanTasks() {
    is_parallel_ = c_.rows * c_.cols * std::max<std::int64_t>(1, depth_) >= kMinParallelWork;
    wanted_tasks_ = is_parallel_ ? threads_.num_threads() * kTasksPerThread : 1;
    num_panels_ = CeilDiv(c_.cols, kernels_.nr);
    const std::int64_t max_panels = std::max<std::int64_t>(1, kRightBytes / (kernels_.nr * block_ * 4));
    const std::int64_t num_threads = is_parallel_ ? threads_.num_threads() : 1;
    // The widest tasks among those with which the busiest thread has least to do.
    std::int64_t least = num_panels_ + 1;
    for (std::int64_t panels = std::min(max_panels, CeilDiv(num_panels_, wanted_tasks_)); panels >= 1; --panels) {
      const std::int64_t busiest = CeilDiv(CeilDiv(num_panels_, panels), num_threads) * panels;
      if (busiest < least) {
        least = busiest;
        panels_per_task_ = panels;
      }
    }
    col_tasks_ = CeilDiv(num_panels_, panels_per_task_);
  }

  // Rows [row, row + rows) of A from A^T, in tiles.
  void PackTiles(std::int64_t row, std::int64_t rows, float* out) const {
    for (std::int64_t i = 0; i < rows; i += kernels_.mr) {
      const int tile_rows = static_cast<int>(std::min<std::int64_t>(kernels_.mr, rows - i));
      kernels_.pack_cols(DType::kF32, left_.matrix.row<float>(0) + row + i, left_.matrix.ld, depth_, tile_rows,
                         tile_rows, out + i * depth_);
    }
  }

  // c = left times all of B; `c` is some or all rows of the result.
  void RunRows(const Left& left, const MatrixView& c) const {
    const std::int64_t num_tiles = CeilDiv(c.rows, kernels_.mr);
    const std::int64_t row_tasks = std::clamp<std::int64_t>(c.rows / kMinTaskRows, 1, CeilDiv(wanted_tasks_, col_tasks_));
    const std::int64_t tiles_per_task = CeilDiv(num_tiles, row_tasks);
    const std::int64_t num_tasks = col_tasks_ * row_tasks;
    const std::int64_t left_elems = left.matrix.dtype == DType::kF32 ? 0 : kernels_.mr * block_;
    // Threads take one task after the other, so that one that is held up holds up nobody else.
    std::atomic<std::int64_t> next_task{0};
    const std::int64_t num_workers = is_parallel_ ? std::min<std::int64_t>(threads_.num_threads(), num_tasks) : 1;
    threads_.ParallelFor(num_workers, 1, [&](std::int64_t, std::int64_t) {
      std::int64_t i = next_task.fetch_add(1, std::memory_order_relaxed);
      if (i >= num_tasks) return;
      const Buffer right_buffer(panels_per_task_ * kernels_.nr * block_);
      const Buffer left_buffer(left_elems);
      Task task;
      task.right_buffer = right_buffer.data();
      task.left_buffer = left_buffer.data();
      for (; i < num_tasks; i = next_task.fetch_add(1, std::memory_order_relaxed)) {
        task.panel_begin = i / row_tasks * panels_per_task_;
        task.panel_end = std::min(num_panels_, task.panel_begin + panels_per_task_);
        task.row_begin = i % row_tasks * tiles_per_task * kernels_.mr;
        task.row_end = std::min(c.rows, task.row_begin + tiles_per_task * kernels_.mr);
        RunTask(left, c, task);
      }
    });
  }

  struct Task {
    std::int64_t panel_begin, panel_end;  // panels of B
    std::int64_t row_begin, row_end;      // rows of C
    float* right_buffer;                  // panels_per_task_ panels of block_ elements of k
    float* left_buffer;                   // mr rows of block_ elements of k, if A needs converting
  };

  void RunTask(const Left& left, const MatrixView& c, const Task& task) const {
    // At least once, since k = 0 has a result, too.
    std::int64_t k = 0;
    do {
      const std::int64_t depth = std::min(depth_ - k, block_);
      const std::int64_t panel_elems = kernels_.nr * depth;
      for (std::int64_t panel = task.panel_begin; panel < task.panel_end; ++panel) {
        PackRight(kernels_, right_, k, k + depth, panel * kernels_.nr, PanelCols(panel),
                  task.right_buffer + (panel - task.panel_begin) * panel_elems);
      }
      for (std::int64_t row = task.row_begin; row < task.row_end; row += kernels_.mr) {
        Tile tile;
        tile.rows = static_cast<int>(std::min<std::int64_t>(kernels_.mr, task.row_end - row));
        tile.depth = depth;
        tile.is_first = k == 0;
        tile.is_transposed = left.layout != Layout::kRows;
        tile.lda = left.matrix.ld;
        if (left.layout == Layout::kTransposed) {
          tile.a = left.matrix.row<float>(k) + row;
        } else if (left.layout == Layout::kTiles) {
          tile.a = left.matrix.row<float>(row) + k * tile.rows;
          tile.lda = tile.rows;
        } else if (left.matrix.dtype == DType::kF32) {
          tile.a = left.matrix.row<float>(row) + k;
        } else {
          ConvertRows(kernels_, left.matrix, row, tile.rows, k, depth, task.left_buffer);
          tile.a = task.left_buffer;
          tile.lda = depth;
        }
        for (std::int64_t panel = task.panel_begin; panel < task.panel_end; ++panel) {
          tile.b = task.right_buffer + (panel - task.panel_begin) * panel_elems;
          RunTile(tile, c, row, panel);
        }
      }
      k += depth;
    } while (k < depth_);
  }

  int PanelCols(std::int64_t panel) const {
    return static_cast<int>(std::min<std::int64_t>(kernels_.nr, c_.cols - panel * kernels_.nr));
  }

  struct Tile {
    int rows;
    std::int64_t depth;
    bool is_first;  // starts the chains of its elements
    bool is_transposed;
    const float* a;
    std::int64_t lda;
    const float* b;
  };

  void RunTile(const Tile& tile, const MatrixView& c, std::int64_t row, std::int64_t panel) const {
    const std::int64_t col = panel * kernels_.nr;
    const int cols = PanelCols(panel);
    const bool load_c = accumulate_ || !tile.is_first;
    const float* bias = tile.is_first && bias_ != nullptr ? bias_ + col : nullptr;
    const auto multiply = tile.is_transposed ? kernels_.multiply_transposed : kernels_.multiply;
    float* out = c.row<float>(row) + col;
    if (cols % kernels_.lanes == 0) {
      multiply(tile.rows, cols, tile.depth, tile.a, tile.lda, tile.b, bias, load_c, out, c.ld);
      return;
    }
    // A narrow last tile is computed at full width beside C, in the same order per element.
    alignas(64) float beside[kMaxMr * kMaxNr];
    alignas(64) float padded_bias[kMaxNr] = {};
    const int padded_cols = static_cast<int>(RoundUp(cols, kernels_.lanes));
    for (int i = 0; i < tile.rows; ++i) {
      float* to = beside + i * padded_cols;
      if (load_c) std::copy(out + i * c.ld, out + i * c.ld + cols, to);
      std::fill(to + (load_c ? cols : 0), to + padded_cols, 0.0f);
    }
    if (bias != nullptr) std::copy(bias, bias + cols, padded_bias);
    multiply(tile.rows, padded_cols, tile.depth, tile.a, tile.lda, tile.b, bias == nullptr ? nullptr : padded_bias,
             load_c, beside, padded_cols);
    for (int i = 0; i < tile.rows; ++i) {
      std::copy(beside + i * padded_cols, beside + i * padded_cols + cols, out + i * c.ld);
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
  bool is_parallel_;
  std::int64_t wanted_tasks_;
  std::int64_t num_panels_, panels_per_task_ = 1, col_tasks_;
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
