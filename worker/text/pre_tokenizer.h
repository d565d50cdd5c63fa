// Splitting of text into the words that are encoded one by one: the member "pre_tokenizer" of a
// tokenizer.json.
#ifndef QST_WORKER_TEXT_PRE_TOKENIZER_H_
#define QST_WORKER_TEXT_PRE_TOKENIZER_H_

#include <string>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "nlohmann/json.hpp"
#include "worker/text/regex.h"

namespace qst {

class PreTokenizer {
 public:
  struct Word {
    std::string text;
    // Whether it begins where the whole input begins.
    bool is_at_start = false;
  };

  // Supports null, ByteLevel, Digits, Split, Metaspace and Sequence.
  // Errors  kUnimplemented: another type; it is named. kInvalidArgument: malformed.
  static absl::StatusOr<PreTokenizer> FromJson(const nlohmann::json* component);

  // Splits one word, valid UTF-8, into words, none of them empty.
  // Errors  kResourceExhausted: see Regex.
  absl::StatusOr<std::vector<Word>> Apply(Word text) const;

 private:
  // What becomes of the matches of a split's pattern.
  enum class Behavior { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };
  struct Split {
    Regex pattern;
    Behavior behavior = Behavior::kIsolated;
    bool is_inverted = false;  // the pattern describes the words, not what lies between
  };
  // Puts a string before the word unless it begins with it.
  struct Prefix {
    std::string text;
    bool at_start_only = false;
  };
  struct ReplaceSpaces {
    std::string replacement;
  };
  struct SpellBytes {};
  using Step = std::variant<Split, Prefix, ReplaceSpaces, SpellBytes>;

  absl::Status Append(const nlohmann::json& component, int depth);
  absl::Status AppendByteLevel(const nlohmann::json& component);
  absl::Status AppendMetaspace(const nlohmann::json& component);
  absl::Status AppendSplit(const nlohmann::json& component);
  static absl::StatusOr<std::vector<TextRange>> SplitRanges(const Split& split, absl::string_view text);

  std::vector<Step> steps_;
};

}  // namespace qst

#endif  // QST_WORKER_TEXT_PRE_TOKENIZER_H_
