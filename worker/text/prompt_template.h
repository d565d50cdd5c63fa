// From the fields of an example to the text that a model sees, and which part of it is to be learned.
#ifndef QST_WORKER_TEXT_PROMPT_TEMPLATE_H_
#define QST_WORKER_TEXT_PROMPT_TEMPLATE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/text/dataset.h"
#include "worker/text/prompt_format.h"
#include "worker/text/tokenizer.h"

namespace qst {

struct PromptSegment {
  std::string text;
  bool bears_loss = false;
  bool begins_turn = false;  // BOS goes before it, if the tokenizer adds one
  bool ends_turn = false;    // EOS goes after it, and bears loss as the text does
};

// The segments of one example of any kind but those for classifiers. Answers, each of a conversation's, bear loss with
// what ends them; everything else does not; in plain text (kText) all does. Turns of "function_call" are answers; those
// of other roles than system, user and assistant keep their role's name where the template writes names, else they are
// the user's.
std::vector<PromptSegment> RenderExample(const PromptFormat& format, DataKind kind, const Example& example);

// What stands before the answer that is to be generated.
std::vector<PromptSegment> RenderPrompt(const PromptFormat& format, const std::vector<ChatMessage>& messages);

// Text whose token ends an answer, besides EOS; empty if there is none.
std::string PromptEndMarker(const PromptFormat& format);

struct EncodedPrompt {
  std::vector<int32_t> tokens;
  // 1: predicting this token (from those before it) bears loss. One per token; the first is 0.
  std::vector<uint8_t> target_mask;
};

// Tokenizes segment by segment, as the authors' code does with prompt and answer: a token never spans the
// border between what is learned and what is not. A tokenizer that puts a space before every text takes a
// space that a segment (not the first of a turn) begins with for its own.
// Errors  kResourceExhausted: see Tokenizer::Encode.
absl::StatusOr<EncodedPrompt> EncodeSegments(const std::vector<PromptSegment>& segments, const Tokenizer& tokenizer);

}  // namespace qst

#endif  // QST_WORKER_TEXT_PROMPT_TEMPLATE_H_
