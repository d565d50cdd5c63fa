// From the fields of an example to the text that a model sees, and which part of it is to be learned.
#ifndef QST_WORKER_TEXT_PROMPT_TEMPLATE_H_
#define QST_WORKER_TEXT_PROMPT_TEMPLATE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "worker/text/dataset.h"
#include "worker/text/tokenizer.h"

namespace qst {

enum class PromptTemplate {
  // The texts of Stanford Alpaca, with and without input; the prompt ends in "### Response:".
  kAlpaca,
  // <|im_start|>ROLE, text, <|im_end|>; the end marker is learned.
  kChatml,
  // [INST] and [/INST] around the user's text, <<SYS>> around the system's, BOS and EOS around each turn.
  kLlama2,
  // Nothing: instruction, input and output with one line break between; prompt and completion with none.
  kPlain,
};

struct PromptFormat {
  PromptTemplate name = PromptTemplate::kAlpaca;
  // What the system says in a conversation (or to an instruction) that has no system message; empty:
  // nothing. kChatml and kLlama2 only.
  std::string default_system;
};

absl::string_view PromptTemplateName(PromptTemplate name);

// `name` is "auto" (or empty), "alpaca", "chatml", "llama2" or "plain". Auto takes the model's own by the
// markers in its chat template, with the system message that it has built in; alpaca if none is known; and
// plain for data of kind kCompletion and kText, which are rendered already.
// Errors  kInvalidArgument: another name; the known ones are listed.
absl::StatusOr<PromptFormat> ChoosePromptFormat(absl::string_view name, absl::string_view chat_template, DataKind kind);

struct PromptSegment {
  std::string text;
  bool bears_loss = false;
  bool begins_turn = false;  // BOS goes before it, if the tokenizer adds one
  bool ends_turn = false;    // EOS goes after it, and bears loss as the text does
};

// The segments of one example of any kind but kClassification. Answers bear loss with what ends them;
// everything else does not; in plain text (kText) all does.
std::vector<PromptSegment> RenderExample(const PromptFormat& format, DataKind kind, const Example& example);

// What stands before the answer that is to be generated.
std::vector<PromptSegment> RenderPrompt(const PromptFormat& format, const std::vector<ChatMessage>& messages);

// Text whose token ends an answer, besides EOS; empty if there is none.
absl::string_view PromptEndMarker(PromptTemplate name);

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
