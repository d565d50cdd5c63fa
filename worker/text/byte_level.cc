#include "worker/text/byte_level.h"

#include <array>
#include <cstdint>

#include "worker/text/utf8.h"

namespace qst {
namespace {

constexpr uint32_t kFirstSubstitute = 256;

bool IsPrintable(int byte) { return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE; }

struct Tables {
  std::array<std::string, 256> spelling;
  // Of characters below U+0100 and of the substitutes; -1: spells no byte.
  std::array<int, 512> byte;

  Tables() {
    byte.fill(-1);
    uint32_t substitute = kFirstSubstitute;
    for (int b = 0; b < 256; ++b) {
      const uint32_t character = IsPrintable(b) ? b : substitute++;
      AppendUtf8(character, &spelling[b]);
      byte[character] = b;
    }
  }
};

const Tables& GetTables() {
  static const Tables* const tables = new Tables();
  return *tables;
}

}  // namespace

std::string ToByteLevel(absl::string_view bytes) {
  const Tables& tables = GetTables();
  std::string result;
  result.reserve(bytes.size() + bytes.size() / 4);
  for (const unsigned char byte : bytes) result += tables.spelling[byte];
  return result;
}

void AppendFromByteLevel(absl::string_view token, std::string* bytes) {
  const Tables& tables = GetTables();
  const size_t start = bytes->size();
  for (size_t i = 0; i < token.size();) {
    const Utf8Char c = Utf8CharAt(token, i);
    const int byte = c.is_valid && c.code_point < tables.byte.size() ? tables.byte[c.code_point] : -1;
    if (byte < 0) {
      bytes->resize(start);
      bytes->append(token.data(), token.size());
      return;
    }
    bytes->push_back(static_cast<char>(byte));
    i += c.num_bytes;
  }
}

}  // namespace qst
