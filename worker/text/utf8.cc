#include "worker/text/utf8.h"

namespace qst {
namespace {

bool IsContinuation(unsigned char byte) { return (byte & 0xC0) == 0x80; }

// Whether `second` may follow `lead`: rules out overlong forms, surrogates and values past U+10FFFF.
bool IsSecondByte(unsigned char lead, unsigned char second) {
  switch (lead) {
    case 0xE0:
      return second >= 0xA0 && second <= 0xBF;
    case 0xED:
      return second >= 0x80 && second <= 0x9F;
    case 0xF0:
      return second >= 0x90 && second <= 0xBF;
    case 0xF4:
      return second >= 0x80 && second <= 0x8F;
    default:
      return IsContinuation(second);
  }
}

}  // namespace

Utf8Char Utf8CharAt(absl::string_view text, size_t offset) {
  Utf8Char result;
  const unsigned char lead = text[offset];
  if (lead < 0x80) {
    result.code_point = lead;
    result.is_valid = true;
    return result;
  }
  size_t length = 0;
  if (lead >= 0xC2 && lead <= 0xDF) {
    length = 2;
    result.code_point = lead & 0x1F;
  } else if (lead >= 0xE0 && lead <= 0xEF) {
    length = 3;
    result.code_point = lead & 0x0F;
  } else if (lead >= 0xF0 && lead <= 0xF4) {
    length = 4;
    result.code_point = lead & 0x07;
  } else {
    return result;
  }
  for (size_t i = 1; i < length; ++i) {
    if (offset + i >= text.size()) return result;
    const unsigned char byte = text[offset + i];
    if (i == 1 ? !IsSecondByte(lead, byte) : !IsContinuation(byte)) return result;
    result.code_point = (result.code_point << 6) | (byte & 0x3F);
    result.num_bytes = i + 1;
  }
  result.is_valid = true;
  return result;
}

bool IsValidUtf8(absl::string_view text) {
  for (size_t i = 0; i < text.size();) {
    const Utf8Char c = Utf8CharAt(text, i);
    if (!c.is_valid) return false;
    i += c.num_bytes;
  }
  return true;
}

std::string ToValidUtf8(absl::string_view text) {
  std::string result;
  result.reserve(text.size());
  for (size_t i = 0; i < text.size();) {
    const Utf8Char c = Utf8CharAt(text, i);
    if (c.is_valid) {
      result.append(text.data() + i, c.num_bytes);
    } else {
      result += kReplacementCharacter;
    }
    i += c.num_bytes;
  }
  return result;
}

void AppendUtf8(uint32_t code_point, std::string* out) {
  if (code_point < 0x80) {
    out->push_back(static_cast<char>(code_point));
  } else if (code_point < 0x800) {
    out->push_back(static_cast<char>(0xC0 | (code_point >> 6)));
    out->push_back(static_cast<char>(0x80 | (code_point & 0x3F)));
  } else if (code_point < 0x10000) {
    out->push_back(static_cast<char>(0xE0 | (code_point >> 12)));
    out->push_back(static_cast<char>(0x80 | ((code_point >> 6) & 0x3F)));
    out->push_back(static_cast<char>(0x80 | (code_point & 0x3F)));
  } else {
    out->push_back(static_cast<char>(0xF0 | (code_point >> 18)));
    out->push_back(static_cast<char>(0x80 | ((code_point >> 12) & 0x3F)));
    out->push_back(static_cast<char>(0x80 | ((code_point >> 6) & 0x3F)));
    out->push_back(static_cast<char>(0x80 | (code_point & 0x3F)));
  }
}

bool IsUnicodeSpace(uint32_t c) {
  return (c >= 0x09 && c <= 0x0D) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

size_t TrailingSpaceStart(absl::string_view text) {
  size_t start = text.size();
  while (start > 0) {
    size_t previous = start - 1;
    while (previous > 0 && IsContinuation(text[previous])) --previous;
    if (!IsUnicodeSpace(Utf8CharAt(text, previous).code_point)) break;
    start = previous;
  }
  return start;
}

size_t LeadingSpaceEnd(absl::string_view text) {
  size_t end = 0;
  while (end < text.size()) {
    const Utf8Char c = Utf8CharAt(text, end);
    if (!IsUnicodeSpace(c.code_point)) break;
    end += c.num_bytes;
  }
  return end;
}

}  // namespace qst
