#include "worker/side/arena.h"

#include <algorithm>
#include <cstdint>

#include "proto/support/status_macros.h"

namespace qst {
namespace {

constexpr std::int64_t kAlignFloats = 16;       // 64 bytes: a cache line
constexpr std::int64_t kMinBlockFloats = 1 << 18;

std::int64_t Align(std::int64_t num) { return (num + kAlignFloats - 1) / kAlignFloats * kAlignFloats; }

}  // namespace

void Arena::AddBlock(std::int64_t size) {
  Block block;
  block.size = Align(size);
  block.data.reset(static_cast<float*>(std::aligned_alloc(64, block.size * sizeof(float))));
  QST_CHECK(block.data != nullptr);
  blocks_.push_back(std::move(block));
}

float* Arena::Floats(std::int64_t num) {
  num = Align(std::max<std::int64_t>(num, 1));
  while (current_ < blocks_.size() && blocks_[current_].used + num > blocks_[current_].size) {
    if (current_ + 1 == blocks_.size()) break;
    ++current_;
    blocks_[current_].used = 0;
  }
  if (blocks_.empty() || blocks_[current_].used + num > blocks_[current_].size) {
    const std::int64_t last = blocks_.empty() ? 0 : blocks_.back().size;
    AddBlock(std::max({num, last, kMinBlockFloats}));
    current_ = blocks_.size() - 1;
  }
  Block& block = blocks_[current_];
  float* out = block.data.get() + block.used;
  block.used += num;
  return out;
}

void Arena::Rewind(const Mark& mark) {
  if (blocks_.empty()) return;
  current_ = mark.block;
  blocks_[current_].used = mark.used;
  for (std::size_t i = current_ + 1; i < blocks_.size(); ++i) blocks_[i].used = 0;
}

void Arena::Reset() {
  if (blocks_.size() > 1) {
    std::int64_t total = 0;
    for (const Block& block : blocks_) total += block.size;
    blocks_.clear();
    AddBlock(total);
  }
  current_ = 0;
  if (!blocks_.empty()) blocks_[0].used = 0;
}

std::int64_t Arena::capacity_bytes() const {
  std::int64_t total = 0;
  for (const Block& block : blocks_) total += block.size;
  return total * static_cast<std::int64_t>(sizeof(float));
}

}  // namespace qst
