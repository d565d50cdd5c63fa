#include "worker/text/prompt_template.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "proto/support/status_macros.h"
#include "worker/text/prompt_turns.h"

namespace qst {

std::vector<PromptSegment> RenderExample(const PromptFormat& format, DataKind kind, const Example& example) {
  const PromptSegment answer = {example.output, true, false, true};
  switch (kind) {
    case DataKind::kClassification:
    case DataKind::kRegression:
    case DataKind::kText:
      return {{example.text, true, format.has_bos, true}};
    case DataKind::kChat:
      return RenderTurns(format, example.messages, false);
    case DataKind::kInstruction:
    case DataKind::kCompletion:
      break;
  }
  if (kind == DataKind::kCompletion && format.name == PromptTemplate::kPlain) {
    return {{example.instruction, false, format.has_bos, false}, answer};
  }
  const bool has_input = !example.input.empty();
  if (format.name == PromptTemplate::kAlpaca || format.name == PromptTemplate::kPlain) {
    const PromptFrame frame = PromptFrameOf(format.name, has_input);
    std::string text = absl::StrCat(frame.introduction, frame.before_question, example.instruction);
    if (has_input) absl::StrAppend(&text, frame.before_input, example.input);
    absl::StrAppend(&text, frame.before_answer);
    return {{std::move(text), false, format.has_bos, false}, answer};
  }
  const std::string question =
      has_input ? absl::StrCat(example.instruction, "\n\n", example.input) : example.instruction;
  return RenderTurns(format, {{"user", question}, {"assistant", example.output}}, false);
}

std::vector<PromptSegment> RenderPrompt(const PromptFormat& format, const std::vector<ChatMessage>& messages) {
  std::vector<PromptSegment> segments = RenderTurns(format, messages, true);
  for (PromptSegment& segment : segments) segment.bears_loss = false;
  return segments;
}

absl::StatusOr<EncodedPrompt> EncodeSegments(const std::vector<PromptSegment>& segments, const Tokenizer& tokenizer) {
  EncodedPrompt result;
  for (const PromptSegment& segment : segments) {
    if (segment.begins_turn && tokenizer.adds_bos()) {
      result.tokens.push_back(*tokenizer.bos_id());
      result.target_mask.push_back(0);
    }
    absl::string_view text = segment.text;
    if (!segment.begins_turn && tokenizer.adds_prefix_space()) absl::ConsumePrefix(&text, " ");
    QST_ASSIGN_OR_RETURN(const std::vector<int32_t> ids, tokenizer.Encode(text, /*add_special=*/false));
    result.tokens.insert(result.tokens.end(), ids.begin(), ids.end());
    if (segment.ends_turn && tokenizer.eos_id().has_value()) result.tokens.push_back(*tokenizer.eos_id());
    result.target_mask.resize(result.tokens.size(), segment.bears_loss ? 1 : 0);
  }
  if (!result.target_mask.empty()) result.target_mask[0] = 0;  // nothing comes before it
  return result;
}

}  // namespace qst
