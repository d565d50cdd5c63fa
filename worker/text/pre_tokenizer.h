// Splitting of text into the words that are encoded one by one: the member "pre_tokenizer" of a
// tokenizer.json.
#ifndef QST_WORKER_TEXT_PRE_TOKENIZER_H_
#define QST_WORKER_TEXT_PRE_TOKENIZER_H_

#include <string>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "nlohmann/json.hpp"
#include "worker/text/regex.h"
#include "worker/text/word_scanner.h"

namespace qst {

class PreTokenizer {
 public:
  struct Words {
    std::string text;
    std::vector<TextRange> ranges;  // of text, ascending, none of them empty
  };

  // Supports null, ByteLevel, Digits, Split, Metaspace and Sequence.
  // Errors  kUnimplemented: another type; it is named. kInvalidArgument: malformed.
  static absl::StatusOr<PreTokenizer> FromJson(const nlohmann::json* component);

  // Splits `text`, valid UTF-8. `is_at_start`: it begins where the whole input begins.
  // Errors  kResourceExhausted: see Regex; or the steps make it longer than MaxRewrittenBytes.
  absl::Status Apply(std::string text, bool is_at_start, Words* words) const;

  // Whether the words are to be spelled as ToByteLevel does before they are looked up. Left to the model, which
  // can do without the detour.
  bool ends_with_byte_level() const { return ends_with_byte_level_; }

 private:
  // What becomes of the matches of a split's pattern.
  enum class Behavior { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };
  struct Numbers {};
  struct Split {
    // A literal is any string that is not empty.
    std::variant<Numbers, WordPattern, std::string, Regex> pattern;
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
  static absl::StatusOr<std::vector<TextRange>> FindMatches(const Split& split, absl::string_view text);
  // Appends the parts of one word to `ranges`, `base` added.
  static absl::Status SplitWord(const Split& split, absl::string_view word, size_t base,
                                std::vector<TextRange>* ranges);
  // Appends the word as a step that is no split rewrites it.
  static void Rewrite(const Step& step, absl::string_view word, bool is_at_start, std::string* result);

  std::vector<Step> steps_;
  bool ends_with_byte_level_ = false;
};

}  // namespace qst

#endif  // QST_WORKER_TEXT_PRE_TOKENIZER_H_
