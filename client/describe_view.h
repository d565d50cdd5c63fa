// How a described data set is shown to people.
#ifndef QST_CLIENT_DESCRIBE_VIEW_H_
#define QST_CLIENT_DESCRIBE_VIEW_H_

#include <ostream>
#include <string>

#include "absl/strings/string_view.h"
#include "proto/qst/v1/coordinator.pb.h"

namespace qst {

// The text with control characters (escape sequences too) spelled out: "\n", "\x1b".
std::string VisibleText(absl::string_view text);

// Kind, columns, rows, labels, tokens, template; a line each, as far as they are there.
void PrintSummary(std::ostream& out, const v1::DescribeDatasetResponse& description, uint32_t max_length);

// One example. What bears loss is bold and green on a terminal, in [[ ]] elsewhere.
void PrintExample(std::ostream& out, const v1::DescribeDatasetResponse::RenderedExample& example,
                  absl::string_view format, bool is_terminal);

}  // namespace qst

#endif  // QST_CLIENT_DESCRIBE_VIEW_H_
