#include "worker/text/char_class.h"

#include <algorithm>
#include <vector>

namespace qst {
namespace {

constexpr size_t kNumCodePoints = 0x110000;

void Fill(const CodePointRange* ranges, size_t size, CharClass type, std::vector<CharClass>* table) {
  for (size_t i = 0; i < size; ++i) {
    std::fill(table->begin() + ranges[i].first, table->begin() + ranges[i].last + 1, type);
  }
}

}  // namespace

const CharClass* CharClassTable() {
  static const std::vector<CharClass>* const table = [] {
    auto* result = new std::vector<CharClass>(kNumCodePoints, CharClass::kOther);
    Fill(kLetterRanges, kLetterRangesSize, CharClass::kLetter, result);
    Fill(kNumberRanges, kNumberRangesSize, CharClass::kNumber, result);
    Fill(kSpaceRanges, kSpaceRangesSize, CharClass::kSpace, result);
    return result;
  }();
  return table->data();
}

bool IsInRanges(uint32_t code_point, const CodePointRange* ranges, size_t size) {
  const CodePointRange* const end = ranges + size;
  const CodePointRange* const next = std::upper_bound(
      ranges, end, code_point, [](uint32_t value, const CodePointRange& range) { return value < range.first; });
  return next != ranges && code_point <= (next - 1)->last;
}

}  // namespace qst
