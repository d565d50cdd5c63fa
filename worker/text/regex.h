// Patterns of tokenizer files. They are written for Oniguruma in Ruby's syntax, the engine of the
// Hugging Face library; this class runs them on PCRE2 and refuses what the two read differently.
#ifndef QST_WORKER_TEXT_REGEX_H_
#define QST_WORKER_TEXT_REGEX_H_

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace qst {

struct TextRange {
  size_t begin = 0;  // bytes
  size_t end = 0;
};

// Immutable after construction; safe to use from several threads at once.
class Regex {
 public:
  // Errors  kInvalidArgument: the pattern does not compile. kUnimplemented: it uses something that PCRE2
  // would read differently.
  static absl::StatusOr<Regex> Compile(absl::string_view pattern);

  // The non-overlapping matches from left to right, some possibly empty. `text` must be valid UTF-8.
  // The time is in proportion to the text. Errors  kResourceExhausted: the pattern backtracks too much on this text.
  absl::StatusOr<std::vector<TextRange>> FindAll(absl::string_view text) const;

 private:
  struct Code;
  class Search;
  explicit Regex(std::shared_ptr<const Code> code) : code_(std::move(code)) {}

  std::shared_ptr<const Code> code_;
};

}  // namespace qst

#endif  // QST_WORKER_TEXT_REGEX_H_
