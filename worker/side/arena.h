// Memory for the activations of one micro-batch: handed out piece by piece, given back all at once, and kept for the
// next micro-batch, so that a training step in its steady state allocates nothing.
#ifndef QST_WORKER_SIDE_ARENA_H_
#define QST_WORKER_SIDE_ARENA_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/device.h"
#include "kernels/device_memory.h"
#include "kernels/tensor.h"

namespace qst {

// Memory of the context's device, uninitialised. Not thread-safe. Ops that work with it are enqueued in the same
// context: what was given back may be handed out again while they wait for their turn.
class Arena {
 public:
  // A place to go back to with Rewind.
  struct Mark {
    std::size_t block = 0;
    std::int64_t used = 0;
  };

  // What `ctx` points to must outlive the arena.
  explicit Arena(const OpContext& ctx) : ctx_(ctx) {}
  // Waits for enqueued work: the memory may go to another stream.
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  // num >= 0 elements, 64-byte aligned; valid until Reset or a Rewind to an earlier mark. kResourceExhausted: out of
  // memory, or beyond the device's budget.
  absl::StatusOr<float*> Floats(std::int64_t num);
  absl::StatusOr<std::int32_t*> Ints(std::int64_t num);
  absl::StatusOr<MatrixView> Float(std::int64_t rows, std::int64_t cols);

  Mark GetMark() const { return {current_, blocks_.empty() ? 0 : blocks_[current_].used}; }
  // Gives back what was handed out since the mark.
  void Rewind(const Mark& mark);
  // Gives back everything. The next round gets one block of at least num_floats; if this one's lay in several, of as
  // much as all of them. Making a new block waits for enqueued work. kResourceExhausted as above; nothing is held then.
  absl::Status Reset(std::int64_t num_floats = 0);

  std::int64_t capacity_bytes() const;
  // Another number whenever memory was added or given back: with the same one, the same requests since Reset get the
  // same addresses.
  std::int64_t generation() const { return generation_; }

 private:
  struct Block {
    DeviceMemory memory;
    std::int64_t size = 0;  // floats
    std::int64_t used = 0;  // floats
  };

  absl::Status AddBlock(std::int64_t size);

  const OpContext ctx_;
  std::vector<Block> blocks_;
  std::size_t current_ = 0;
  std::int64_t generation_ = 0;
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
