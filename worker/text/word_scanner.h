// The published word patterns of large language models, without a regular expression engine: the same words
// as the pattern gives (word_scanner_test.cc compares them), many times faster.
#ifndef QST_WORKER_TEXT_WORD_SCANNER_H_
#define QST_WORKER_TEXT_WORD_SCANNER_H_

#include <cstddef>
#include <optional>
#include <vector>

#include "absl/strings/string_view.h"
#include "worker/text/regex.h"

namespace qst {

enum class WordPattern {
  kGpt2,    // GPT-2, OPT, SmolLM2 (after its digits), GPT-NeoX
  kLlama3,  // LLaMA 3: up to three digits a word
  kQwen2,   // Qwen2: as LLaMA 3, digits one by one
};

// The pattern as tokenizer files spell it, in Oniguruma's syntax.
absl::string_view WordPatternText(WordPattern pattern);

// The pattern with this spelling, if it is one of them.
std::optional<WordPattern> FindWordPattern(absl::string_view text);

// Appends the words of `text`, valid UTF-8. They cover it without gaps; `base` is added to their ends.
void AppendWords(WordPattern pattern, absl::string_view text, size_t base, std::vector<TextRange>* words);

// Appends each number character (\p{N}) of `text`, valid UTF-8.
void AppendNumbers(absl::string_view text, std::vector<TextRange>* numbers);

}  // namespace qst

#endif  // QST_WORKER_TEXT_WORD_SCANNER_H_
