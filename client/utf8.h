// Checks of text from outside before it goes into messages, whose strings must be UTF-8.
#ifndef QST_CLIENT_UTF8_H_
#define QST_CLIENT_UTF8_H_

#include "absl/strings/string_view.h"

namespace qst {

// Whether `text` is well-formed UTF-8: no overlong forms, surrogates or values above U+10FFFF.
bool IsValidUtf8(absl::string_view text);

}  // namespace qst

#endif  // QST_CLIENT_UTF8_H_
