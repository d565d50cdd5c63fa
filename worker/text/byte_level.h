// GPT-2's printable spelling of bytes: each byte is one character, itself where it is printable Latin-1
// (without the space), and one from U+0100 upwards where it is not.
#ifndef QST_WORKER_TEXT_BYTE_LEVEL_H_
#define QST_WORKER_TEXT_BYTE_LEVEL_H_

#include <string>

#include "absl/strings/string_view.h"

namespace qst {

// Any bytes as printable characters.
std::string ToByteLevel(absl::string_view bytes);

// Appends the bytes that a token stands for. A token with a character that spells no byte stands for
// itself.
void AppendFromByteLevel(absl::string_view token, std::string* bytes);

}  // namespace qst

#endif  // QST_WORKER_TEXT_BYTE_LEVEL_H_
