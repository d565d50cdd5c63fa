// Memory for the activations of one micro-batch: handed out piece by piece, given back all at once, and kept for the
// next micro-batch, so that a training step in its steady state allocates nothing.
#ifndef QST_WORKER_SIDE_ARENA_H_
#define QST_WORKER_SIDE_ARENA_H_

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <vector>

#include "kernels/tensor.h"

namespace qst {

// Not thread-safe. Memory is uninitialised.
class Arena {
 public:
  // A place to go back to with Rewind.
  struct Mark {
    std::size_t block = 0;
    std::int64_t used = 0;
  };

  Arena() = default;
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  // num floats, 64-byte aligned; valid until Reset or a Rewind to an earlier mark.
  float* Floats(std::int64_t num);
  MatrixView Float(std::int64_t rows, std::int64_t cols) { return Matrix(Floats(rows * cols), rows, cols); }

  Mark GetMark() const { return {current_, blocks_.empty() ? 0 : blocks_[current_].used}; }
  // Gives back what was handed out since the mark.
  void Rewind(const Mark& mark);
  // Gives back everything. If it lay in several blocks, the next round gets one that is large enough for all.
  void Reset();

  std::int64_t capacity_bytes() const;

 private:
  struct Free {
    void operator()(float* p) const { std::free(p); }
  };
  struct Block {
    std::unique_ptr<float, Free> data;
    std::int64_t size = 0;  // floats
    std::int64_t used = 0;  // floats
  };

  void AddBlock(std::int64_t size);

  std::vector<Block> blocks_;
  std::size_t current_ = 0;
};

// Gives back to the arena what was taken from it during the scope.
class ArenaScope {
 public:
  explicit ArenaScope(Arena* arena) : arena_(arena), mark_(arena->GetMark()) {}
  ~ArenaScope() { arena_->Rewind(mark_); }
  ArenaScope(const ArenaScope&) = delete;
  ArenaScope& operator=(const ArenaScope&) = delete;

 private:
  Arena* arena_;
  Arena::Mark mark_;
};

}  // namespace qst

#endif  // QST_WORKER_SIDE_ARENA_H_
