#include "worker/text/batcher.h"

#include <algorithm>
#include <array>
#include <numeric>
#include <utility>

#include "absl/numeric/int128.h"
#include "absl/strings/str_cat.h"
#include "proto/support/status_macros.h"

namespace qst {
namespace {

constexpr uint64_t kGoldenGamma = 0x9E3779B97F4A7C15;

uint64_t RotateLeft(uint64_t value, int bits) { return (value << bits) | (value >> (64 - bits)); }

class Xoshiro256 {
 public:
  explicit Xoshiro256(uint64_t seed) {
    for (uint64_t& word : state_) {
      seed += kGoldenGamma;
      uint64_t z = seed;
      z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
      z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
      word = z ^ (z >> 31);
    }
  }

  uint64_t Next() {
    const uint64_t result = RotateLeft(state_[1] * 5, 7) * 9;
    const uint64_t shifted = state_[1] << 17;
    state_[2] ^= state_[0];
    state_[3] ^= state_[1];
    state_[1] ^= state_[2];
    state_[0] ^= state_[3];
    state_[2] ^= shifted;
    state_[3] = RotateLeft(state_[3], 45);
    return result;
  }

  // Uniform from 0 to bound - 1; bound > 0.
  uint64_t Below(uint64_t bound) {
    const uint64_t threshold = (0 - bound) % bound;  // 2^64 mod bound
    for (;;) {
      const absl::uint128 product = absl::uint128(Next()) * bound;
      if (absl::Uint128Low64(product) >= threshold) return absl::Uint128High64(product);
    }
  }

 private:
  std::array<uint64_t, 4> state_;
};

}  // namespace

std::vector<int64_t> ShuffledOrder(int64_t count, uint64_t seed, int64_t epoch) {
  std::vector<int64_t> order(static_cast<size_t>(std::max<int64_t>(count, 0)));
  std::iota(order.begin(), order.end(), 0);
  Xoshiro256 random(seed + static_cast<uint64_t>(epoch) * kGoldenGamma);
  for (int64_t i = count - 1; i >= 1; --i) {
    std::swap(order[i], order[random.Below(static_cast<uint64_t>(i) + 1)]);
  }
  return order;
}

absl::StatusOr<Batcher> Batcher::Create(const BatcherOptions& options, std::vector<int64_t> lengths) {
  if (lengths.empty()) return absl::InvalidArgumentError("there are no examples to batch");
  if (options.batch_size < 1) {
    return absl::InvalidArgumentError(absl::StrCat("batch_size is ", options.batch_size, ", must be at least 1"));
  }
  if (options.micro_batch_tokens < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("micro_batch_tokens is ", options.micro_batch_tokens, ", must be at least 1"));
  }
  for (size_t i = 0; i < lengths.size(); ++i) {
    if (lengths[i] < 1) return absl::InvalidArgumentError(absl::StrCat("example ", i, " has ", lengths[i], " tokens"));
  }
  return Batcher(options, std::move(lengths));
}

Batch Batcher::GetBatch(int64_t step) {
  QST_CHECK(step >= 0);
  Batch batch;
  batch.step = step;
  batch.epoch = step / steps_per_epoch();
  batch.step_in_epoch = step % steps_per_epoch();
  batch.ends_epoch = batch.step_in_epoch == steps_per_epoch() - 1;
  if (options_.shuffle && epoch_ != batch.epoch) {
    order_ = ShuffledOrder(num_examples(), options_.seed, batch.epoch);
    epoch_ = batch.epoch;
  }
  const int64_t begin = batch.step_in_epoch * options_.batch_size;
  // The last batch is found by what is left, since begin + batch_size could overflow.
  const int64_t end = begin + std::min(options_.batch_size, num_examples() - begin);
  int64_t tokens = 0;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t example = options_.shuffle ? order_[i] : i;
    const int64_t length = lengths_[example];
    if (batch.micro_batches.empty() || length > options_.micro_batch_tokens - tokens) {
      batch.micro_batches.emplace_back();
      tokens = 0;
    }
    batch.micro_batches.back().push_back(example);
    tokens += length;
  }
  return batch;
}

}  // namespace qst
