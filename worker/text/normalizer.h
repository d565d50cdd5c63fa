// Rewriting of text before it is split into words: the member "normalizer" of a tokenizer.json.
#ifndef QST_WORKER_TEXT_NORMALIZER_H_
#define QST_WORKER_TEXT_NORMALIZER_H_

#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "nlohmann/json.hpp"
#include "worker/text/regex.h"

namespace qst {

// Replaces each occurrence of a string, or each match of a pattern. Also a step of decoders.
class ReplaceStep {
 public:
  // `component` has "pattern" ({"String": ...} or {"Regex": ...}) and "content".
  static absl::StatusOr<ReplaceStep> FromJson(const nlohmann::json& component);
  absl::StatusOr<std::string> Apply(absl::string_view text) const;

 private:
  std::optional<Regex> regex_;  // else:
  std::string literal_;
  std::string content_;
};

class Normalizer {
 public:
  // Supports null, Prepend, Replace and Sequence.
  // Errors  kUnimplemented: another type; it is named. kInvalidArgument: malformed.
  static absl::StatusOr<Normalizer> FromJson(const nlohmann::json* component);

  // `text` must be valid UTF-8. Errors  kResourceExhausted: see Regex.
  absl::StatusOr<std::string> Apply(absl::string_view text) const;

 private:
  struct Step {
    std::string prepend;  // if there is no replacement
    std::optional<ReplaceStep> replace;
  };

  absl::Status Append(const nlohmann::json& component, int depth);

  std::vector<Step> steps_;
};

}  // namespace qst

#endif  // QST_WORKER_TEXT_NORMALIZER_H_
