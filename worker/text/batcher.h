// The order of the training examples and their packing into micro-batches: a pure function of seed,
// lengths and sizes, so that any step of a job can be asked for at any time, on any machine.
#ifndef QST_WORKER_TEXT_BATCHER_H_
#define QST_WORKER_TEXT_BATCHER_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"

namespace qst {

// A pseudo-random permutation of 0 .. count-1, the same on every platform and in every version. The
// algorithm is part of the contract, because a resumed job must see the order that it began with:
//   state  four 64-bit words from splitmix64, started at  seed + epoch * 0x9E3779B97F4A7C15  (mod 2^64)
//   next   xoshiro256**
//   below  n:  the high 64 bits of next * n, drawn again while the low 64 bits are below 2^64 mod n
//   order  Fisher-Yates from the end: for i = count-1 .. 1, swap(i, below(i + 1))
std::vector<int64_t> ShuffledOrder(int64_t count, uint64_t seed, int64_t epoch);

struct BatcherOptions {
  uint64_t seed = 0;
  // Examples of one optimizer step. The last step of an epoch takes what is left.
  int64_t batch_size = 16;
  // Most tokens of one micro-batch; an example that is longer makes one of its own.
  int64_t micro_batch_tokens = 2048;
  // Without it, examples come in their own order in every epoch.
  bool shuffle = true;
};

// One optimizer step.
struct Batch {
  int64_t step = 0;           // from 0, through all epochs
  int64_t epoch = 0;          // from 0
  int64_t step_in_epoch = 0;  // from 0
  bool ends_epoch = false;
  // Indices of examples. The examples of a step, in order, cut where the next one would no longer fit.
  std::vector<std::vector<int64_t>> micro_batches;
};

// Not safe for use by several threads at once: it keeps the order of the epoch asked for last.
class Batcher {
 public:
  // `lengths` are the examples' tokens.
  // Errors  kInvalidArgument: no examples, a length that is not positive, sizes that are not positive.
  static absl::StatusOr<Batcher> Create(const BatcherOptions& options, std::vector<int64_t> lengths);

  // Any step, in any order of asking. Costs time for one step, and where the epoch is not the one asked
  // for last, for one shuffle.
  Batch GetBatch(int64_t step);

  int64_t num_examples() const { return static_cast<int64_t>(lengths_.size()); }
  int64_t steps_per_epoch() const { return (num_examples() - 1) / options_.batch_size + 1; }

 private:
  Batcher(const BatcherOptions& options, std::vector<int64_t> lengths)
      : options_(options), lengths_(std::move(lengths)) {}

  BatcherOptions options_;
  std::vector<int64_t> lengths_;
  std::optional<int64_t> epoch_;  // the one that order_ is for
  std::vector<int64_t> order_;
};

}  // namespace qst

#endif  // QST_WORKER_TEXT_BATCHER_H_
