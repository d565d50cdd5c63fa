// Which of the classes that tokenizers' patterns tell apart a character belongs to.
#ifndef QST_WORKER_TEXT_CHAR_CLASS_H_
#define QST_WORKER_TEXT_CHAR_CLASS_H_

#include <cstddef>
#include <cstdint>

#include "absl/strings/string_view.h"
#include "worker/text/unicode_tables.h"

namespace qst {

enum class CharClass : uint8_t { kOther, kLetter, kNumber, kSpace };

// By code point, 0x110000 entries; made at the first call.
const CharClass* CharClassTable();

// Whether a table of unicode_tables.h holds the code point.
bool IsInRanges(uint32_t code_point, const CodePointRange* ranges, size_t size);

// Code point and length of the character at `offset` of valid UTF-8.
inline uint32_t DecodeValidUtf8(absl::string_view text, size_t offset, uint8_t* num_bytes) {
  const auto byte = [&](size_t i) { return static_cast<uint32_t>(static_cast<unsigned char>(text[offset + i])); };
  const uint32_t lead = byte(0);
  if (lead < 0x80) {
    *num_bytes = 1;
    return lead;
  }
  if (lead < 0xE0) {
    *num_bytes = 2;
    return (lead & 0x1F) << 6 | (byte(1) & 0x3F);
  }
  if (lead < 0xF0) {
    *num_bytes = 3;
    return (lead & 0x0F) << 12 | (byte(1) & 0x3F) << 6 | (byte(2) & 0x3F);
  }
  *num_bytes = 4;
  return (lead & 0x07) << 18 | (byte(1) & 0x3F) << 12 | (byte(2) & 0x3F) << 6 | (byte(3) & 0x3F);
}

}  // namespace qst

#endif  // QST_WORKER_TEXT_CHAR_CLASS_H_
