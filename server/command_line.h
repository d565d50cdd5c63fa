// Parses flags so that wrong usage is an error to report, not an exit from within.
#ifndef QST_SERVER_COMMAND_LINE_H_
#define QST_SERVER_COMMAND_LINE_H_

#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace qst {

// Sets flags (ABSL_FLAG) from "--name=value", "--name value", and for booleans "--name" and "--noname".
// kInvalidArgument names the argument. *wants_help: --help or -h was there.
absl::Status ParseFlags(int argc, const char* const* argv, bool* wants_help);

// "--name=DEFAULT  what it does", one line each, of the flags that `file` (as in __FILE__) defines.
std::string DescribeFlags(absl::string_view file);

}  // namespace qst

#endif  // QST_SERVER_COMMAND_LINE_H_
