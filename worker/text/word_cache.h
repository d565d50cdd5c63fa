// Remembers the tokens of words: words of natural text repeat.
#ifndef QST_WORKER_TEXT_WORD_CACHE_H_
#define QST_WORKER_TEXT_WORD_CACHE_H_

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "absl/strings/string_view.h"

namespace qst {

// A table of fixed size in which each word has one place; a later word takes the place of an earlier one. For one
// thread at a time.
class WordCache {
 public:
  WordCache() : slots_(new Slot[kNumSlots]()) {}

  // Appends the word's tokens if they are known.
  bool Lookup(absl::string_view word, std::vector<int32_t>* ids) const {
    if (word.size() > kMaxBytes) return false;
    const Slot& slot = slots_[SlotOf(word)];
    if (slot.num_bytes != word.size() || std::memcmp(slot.bytes, word.data(), word.size()) != 0) return false;
    ids->insert(ids->end(), slot.ids, slot.ids + slot.num_ids);
    return true;
  }

  // Remembers the tokens of a word that is not empty; long ones are not worth their place.
  void Insert(absl::string_view word, const int32_t* ids, size_t num_ids) {
    if (word.empty() || word.size() > kMaxBytes || num_ids > kMaxIds) return;
    Slot& slot = slots_[SlotOf(word)];
    slot.num_bytes = static_cast<uint8_t>(word.size());
    slot.num_ids = static_cast<uint8_t>(num_ids);
    std::memcpy(slot.bytes, word.data(), word.size());
    std::copy(ids, ids + num_ids, slot.ids);  // a word may have no tokens, and then `ids` be null
  }

 private:
  static constexpr size_t kMaxBytes = 46;
  static constexpr size_t kMaxIds = 20;
  static constexpr int kSlotBits = 15;
  static constexpr size_t kNumSlots = size_t{1} << kSlotBits;

  struct Slot {
    uint8_t num_bytes;  // 0: nothing here
    uint8_t num_ids;
    char bytes[kMaxBytes];
    int32_t ids[kMaxIds];
  };
  static_assert(sizeof(Slot) == 128, "two cache lines");

  static size_t SlotOf(absl::string_view word) {
    uint64_t hash = word.size();
    const char* data = word.data();
    size_t left = word.size();
    for (; left >= 8; left -= 8, data += 8) {
      uint64_t part;
      std::memcpy(&part, data, 8);
      hash = Mix(hash ^ part);
    }
    uint64_t part = 0;
    std::memcpy(&part, data, left);
    return static_cast<size_t>(Mix(hash ^ part) >> (64 - kSlotBits));
  }
  static uint64_t Mix(uint64_t value) {
    value *= 0x9E3779B97F4A7C15;
    return (value ^ (value >> 32)) * 0xD6E8FEB86659FD93;
  }

  std::unique_ptr<Slot[]> slots_;
};

}  // namespace qst

#endif  // QST_WORKER_TEXT_WORD_CACHE_H_
