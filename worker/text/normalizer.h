// Rewriting of text before it is split into words: the member "normalizer" of a tokenizer.json.
#ifndef QST_WORKER_TEXT_NORMALIZER_H_
#define QST_WORKER_TEXT_NORMALIZER_H_

#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "nlohmann/json.hpp"
#include "worker/text/regex.h"
#include "worker/text/unicode_text.h"

namespace qst {

// Replaces each occurrence of a string, or each match of a pattern. Also a step of decoders.
class ReplaceStep {
 public:
  // `component` has "pattern" ({"String": ...} or {"Regex": ...}) and "content".
  static absl::StatusOr<ReplaceStep> FromJson(const nlohmann::json& component);
  // Errors  kResourceExhausted: see Regex; or the result has more than `max_bytes`.
  absl::StatusOr<std::string> Apply(absl::string_view text, size_t max_bytes) const;

 private:
  std::optional<Regex> regex_;  // else:
  std::string literal_;
  std::string content_;
};

// What a tokenizer's rules may make of a text of `num_bytes`. No real rules come near; hostile ones would otherwise
// take any amount of memory.
inline size_t MaxRewrittenBytes(size_t num_bytes) { return 64 * num_bytes + (size_t{1} << 20); }

class Normalizer {
 public:
  // Supports null, NFC, NFD, NFKC, NFKD, Lowercase, Strip, StripAccents, Replace, Prepend and Sequence.
  // Errors  kUnimplemented: another type; it is named. kInvalidArgument: malformed.
  static absl::StatusOr<Normalizer> FromJson(const nlohmann::json* component);

  // `text` must be valid UTF-8. Errors  kResourceExhausted: see Regex; or the result is longer than
  // MaxRewrittenBytes.
  absl::StatusOr<std::string> Apply(absl::string_view text) const;

 private:
  struct Prepend {
    std::string text;
  };
  struct Strip {
    bool left = true;
    bool right = true;
  };
  struct Lowercase {};
  struct StripAccents {};
  using Step = std::variant<Prepend, Strip, Lowercase, StripAccents, NormalForm, ReplaceStep>;

  absl::Status Append(const nlohmann::json& component, int depth);
  static absl::StatusOr<std::string> ApplyStep(const Step& step, std::string text, size_t max_bytes);

  std::vector<Step> steps_;
};

}  // namespace qst

#endif  // QST_WORKER_TEXT_NORMALIZER_H_
