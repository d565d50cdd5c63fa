// Rewriting of text by Unicode's rules, as the Hugging Face library's normalizers do it. All texts are valid UTF-8.
#ifndef QST_WORKER_TEXT_UNICODE_TEXT_H_
#define QST_WORKER_TEXT_UNICODE_TEXT_H_

#include <string>

#include "absl/strings/string_view.h"

namespace qst {

enum class NormalForm { kNfc, kNfd, kNfkc, kNfkd };

// Time grows as n log n at worst, with any text.
std::string ToNormalForm(NormalForm form, absl::string_view text);

// Each character's full lower case, without regard to its neighbours.
std::string ToLowercase(absl::string_view text);

// Without combining marks.
std::string RemoveMarks(absl::string_view text);

}  // namespace qst

#endif  // QST_WORKER_TEXT_UNICODE_TEXT_H_
