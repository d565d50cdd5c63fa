#include "worker/side/arena.h"

#include <algorithm>
#include <cstdint>
#include <utility>

#include "proto/support/status_macros.h"

namespace qst {
namespace {

constexpr std::int64_t kAlignFloats = 16;  // 64 bytes: a cache line
constexpr std::int64_t kMinBlockFloats = 1 << 18;
static_assert(sizeof(float) == sizeof(std::int32_t), "Ints are handed out as floats");

std::int64_t Align(std::int64_t num) { return (num + kAlignFloats - 1) / kAlignFloats * kAlignFloats; }

}  // namespace

Arena::~Arena() { Synchronize(ctx_).IgnoreError(); }

absl::Status Arena::AddBlock(std::int64_t size) {
  Block block;
  block.size = Align(size);
  QST_ASSIGN_OR_RETURN(block.memory,
                       DeviceMemory::Allocate(ctx_, block.size * static_cast<std::int64_t>(sizeof(float))));
  blocks_.push_back(std::move(block));
  ++generation_;
  return absl::OkStatus();
}

absl::StatusOr<float*> Arena::Floats(std::int64_t num) {
  num = Align(std::max<std::int64_t>(num, 1));
  while (current_ < blocks_.size() && blocks_[current_].used + num > blocks_[current_].size) {
    if (current_ + 1 == blocks_.size()) break;
    ++current_;
    blocks_[current_].used = 0;
  }
  if (blocks_.empty() || blocks_[current_].used + num > blocks_[current_].size) {
    QST_RETURN_IF_ERROR(AddBlock(std::max(num, kMinBlockFloats)));
    current_ = blocks_.size() - 1;
  }
  Block& block = blocks_[current_];
  float* out = block.memory.as<float>() + block.used;
  block.used += num;
  return out;
}

absl::StatusOr<std::int32_t*> Arena::Ints(std::int64_t num) {
  QST_ASSIGN_OR_RETURN(float* const memory, Floats(num));
  return static_cast<std::int32_t*>(static_cast<void*>(memory));
}

absl::StatusOr<MatrixView> Arena::Float(std::int64_t rows, std::int64_t cols) {
  QST_ASSIGN_OR_RETURN(float* const memory, Floats(rows * cols));
  return Matrix(memory, rows, cols);
}

void Arena::Rewind(const Mark& mark) {
  if (blocks_.empty()) return;
  current_ = mark.block;
  blocks_[current_].used = mark.used;
  for (std::size_t i = current_ + 1; i < blocks_.size(); ++i) blocks_[i].used = 0;
}

absl::Status Arena::Reset(std::int64_t num_floats) {
  current_ = 0;
  if (blocks_.size() == 1 && blocks_[0].size >= num_floats) {
    blocks_[0].used = 0;
    return absl::OkStatus();
  }
  std::int64_t held = 0;
  for (const Block& block : blocks_) held += block.size;
  if (held > 0) {
    QST_RETURN_IF_ERROR(Synchronize(ctx_));
    blocks_.clear();
    ++generation_;
  }
  const std::int64_t size = std::max(num_floats, held);
  return size > 0 ? AddBlock(size) : absl::OkStatus();
}

std::int64_t Arena::capacity_bytes() const {
  std::int64_t total = 0;
  for (const Block& block : blocks_) total += block.size;
  return total * static_cast<std::int64_t>(sizeof(float));
}

}  // namespace qst
