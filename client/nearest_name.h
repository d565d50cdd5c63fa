// Suggestions for mistyped names.
#ifndef QST_CLIENT_NEAREST_NAME_H_
#define QST_CLIENT_NEAREST_NAME_H_

#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace qst {

// Inserted, deleted, replaced and swapped neighbouring characters that turn a into b.
int EditDistance(absl::string_view a, absl::string_view b);

// The candidate nearest to `name`, the first of equals; "" if none is near enough to be what was meant
// (a third of the name's length, at least 1, or the name is a beginning of the candidate).
std::string NearestName(absl::string_view name, const std::vector<std::string>& candidates);

// "; did you mean 'x'?", or "" without a near name.
std::string DidYouMean(absl::string_view name, const std::vector<std::string>& candidates);

}  // namespace qst

#endif  // QST_CLIENT_NEAREST_NAME_H_
