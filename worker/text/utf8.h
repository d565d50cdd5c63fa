// UTF-8 as untrusted input: every function accepts any bytes.
#ifndef QST_WORKER_TEXT_UTF8_H_
#define QST_WORKER_TEXT_UTF8_H_

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"

namespace qst {

// U+FFFD as UTF-8: stands for bytes that are not text.
inline constexpr char kReplacementCharacter[] = "\xEF\xBF\xBD";

struct Utf8Char {
  uint32_t code_point = 0;
  // Bytes it takes, at least 1. If !is_valid: the bytes that one U+FFFD stands for, which are the longest
  // beginning of a character that was broken off (Unicode chapter 3.9, "maximal subparts").
  size_t num_bytes = 1;
  bool is_valid = false;
};

// The character at `offset`, which must be below text.size().
Utf8Char Utf8CharAt(absl::string_view text, size_t offset);

bool IsValidUtf8(absl::string_view text);

// The text with each broken part replaced by U+FFFD.
std::string ToValidUtf8(absl::string_view text);

void AppendUtf8(uint32_t code_point, std::string* out);

// The property White_Space.
bool IsUnicodeSpace(uint32_t code_point);

// Where the white space that ends (or starts) the text begins (or ends); text must be valid UTF-8.
size_t TrailingSpaceStart(absl::string_view text);
size_t LeadingSpaceEnd(absl::string_view text);

}  // namespace qst

#endif  // QST_WORKER_TEXT_UTF8_H_
