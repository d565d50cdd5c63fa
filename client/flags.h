// Command-line flags of one command, from a table. Accepts --name=value, --name value, -n value,
// --bool, --bool=false and "--" (what follows is positional); flags and positional arguments may mix.
#ifndef QST_CLIENT_FLAGS_H_
#define QST_CLIENT_FLAGS_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace qst {

enum class FlagKind {
  kBool,
  kString,
  kUint,
  kDouble,
  kDuration,  // "30s", "2m"; a bare number is seconds
  kList,      // may be given several times
};

struct FlagSpec {
  std::string name;
  // Short form, or 0.
  char letter = 0;
  FlagKind kind = FlagKind::kString;
  // What help calls the value: "DIR". Empty for bools.
  std::string value_name;
  // Value when not given; must parse. Empty = zero of its kind.
  std::string default_text;
  std::string help;
};

class ParsedArgs {
 public:
  std::vector<std::string> positional;

  // Whether the command line gave it.
  bool Has(absl::string_view name) const;
  // The value or its default. Asking for a flag that the table lacks, or as another kind, is a bug.
  bool Bool(absl::string_view name) const;
  const std::string& String(absl::string_view name) const;
  uint64_t Uint(absl::string_view name) const;
  double Double(absl::string_view name) const;
  absl::Duration Duration(absl::string_view name) const;
  const std::vector<std::string>& List(absl::string_view name) const;

 private:
  friend class FlagParser;
  struct Value {
    FlagKind kind = FlagKind::kString;
    bool given = false;
    bool bool_value = false;
    uint64_t uint_value = 0;
    double double_value = 0;
    absl::Duration duration_value;
    std::string string_value;
    std::vector<std::string> list_value;
  };
  const Value& Get(absl::string_view name, FlagKind kind) const;
  std::map<std::string, Value, std::less<>> values_;
};

// Errors are usage errors (client/errors.h) that name the flag, with the nearest known one.
absl::StatusOr<ParsedArgs> ParseFlags(const std::vector<FlagSpec>& specs, const std::vector<std::string>& args);

// Parses leading flags only: stops at the first positional argument, and sets *rest to it and what follows.
absl::StatusOr<ParsedArgs> ParseLeadingFlags(const std::vector<FlagSpec>& specs, const std::vector<std::string>& args,
                                             std::vector<std::string>* rest);

// Aligned lines for --help: "  -o, --output=DIR   where to write (default: .)".
std::string FlagHelp(const std::vector<FlagSpec>& specs);

}  // namespace qst

#endif  // QST_CLIENT_FLAGS_H_
