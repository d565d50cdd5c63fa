#include "worker/text/prompt_template.h"

#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "proto/support/status_macros.h"

namespace qst {
namespace {

constexpr char kStart[] = "<|im_start|>";
constexpr char kEnd[] = "<|im_end|>";

// The fixed texts of the Alpaca format: models know it by exactly these.
constexpr char kAlpacaIntroduction[] =
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.";
constexpr char kAlpacaIntroductionWithInput[] =
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
    "response that appropriately completes the request.";
constexpr char kAlpacaResponse[] = "\n\n### Response:";

bool IsAnswer(const std::string& role) { return role == "assistant" || role == "function_call"; }

// The system message that a ChatML template writes where a conversation has none: text that stands in the
// template literally. Empty if it is put together from parts.
std::string BuiltInSystemMessage(absl::string_view chat_template) {
  const std::string opening = absl::StrCat(kStart, "system");
  const size_t begin = chat_template.find(opening);
  if (begin == absl::string_view::npos) return "";
  absl::string_view rest = chat_template.substr(begin + opening.size());
  // A line break, as it is or as Jinja's escape.
  if (!absl::ConsumePrefix(&rest, "\n") && !absl::ConsumePrefix(&rest, "\\n")) return "";
  const size_t end = rest.find(kEnd);
  if (end == absl::string_view::npos) return "";
  const absl::string_view message = rest.substr(0, end);
  if (message.find_first_of("{}'\"\\") != absl::string_view::npos) return "";
  return std::string(message);
}

void AppendAnswer(std::string text, std::vector<PromptSegment>* segments) {
  segments->push_back({std::move(text), true, false, true});
}

std::vector<PromptSegment> RenderChatml(const PromptFormat& format, const std::vector<ChatMessage>& messages,
                                        bool wants_answer) {
  std::vector<PromptSegment> segments;
  std::string text;  // of the next segment that bears no loss
  auto flush = [&] {
    if (!text.empty()) segments.push_back({std::move(text), false, segments.empty(), false});
    text.clear();
  };
  if (!format.default_system.empty() && (messages.empty() || messages[0].role != "system")) {
    text = absl::StrCat(kStart, "system\n", format.default_system, kEnd, "\n");
  }
  for (const ChatMessage& message : messages) {
    absl::StrAppend(&text, kStart, message.role, "\n");
    if (IsAnswer(message.role)) {
      flush();
      segments.push_back({absl::StrCat(message.content, kEnd), true, false, false});
      text = "\n";
    } else {
      absl::StrAppend(&text, message.content, kEnd, "\n");
    }
  }
  if (wants_answer) absl::StrAppend(&text, kStart, "assistant\n");
  flush();
  return segments;
}

std::vector<PromptSegment> RenderLlama2(const PromptFormat& format, const std::vector<ChatMessage>& messages) {
  std::vector<PromptSegment> segments;
  std::string system = format.default_system;
  std::string question;
  bool has_question = false;
  auto flush = [&] {
    if (!has_question && system.empty()) return;
    const std::string prefix = system.empty() ? "" : absl::StrCat("<<SYS>>\n", system, "\n<</SYS>>\n\n");
    segments.push_back({absl::StrCat("[INST] ", prefix, question, " [/INST]"), false, true, false});
    system.clear();
    question.clear();
    has_question = false;
  };
  for (const ChatMessage& message : messages) {
    if (message.role == "system") {
      system = message.content;
    } else if (IsAnswer(message.role)) {
      flush();
      AppendAnswer(absl::StrCat(" ", message.content, " "), &segments);
    } else {
      // Two questions in a row, or the result of a function: one turn.
      question = has_question ? absl::StrCat(question, "\n", message.content) : message.content;
      has_question = true;
    }
  }
  flush();
  return segments;
}

// Alpaca and plain: texts before each question, before its input and before the answer.
struct Frame {
  std::string introduction;
  std::string before_question;
  std::string before_input;
  std::string before_answer;
};

Frame FrameOf(PromptTemplate name, bool has_input) {
  if (name == PromptTemplate::kPlain) return {"", "", "\n", "\n"};
  return {has_input ? kAlpacaIntroductionWithInput : kAlpacaIntroduction, "\n\n### Instruction:\n", "\n\n### Input:\n",
          kAlpacaResponse};
}

std::vector<PromptSegment> RenderFramed(const PromptFormat& format, const std::vector<ChatMessage>& messages,
                                        bool wants_answer) {
  const Frame frame = FrameOf(format.name, false);
  std::vector<PromptSegment> segments;
  std::string text = frame.introduction;
  for (const ChatMessage& message : messages) {
    if (message.role == "system") {
      text = message.content;
      if (format.name == PromptTemplate::kPlain) text += "\n";
    } else if (IsAnswer(message.role)) {
      absl::StrAppend(&text, frame.before_answer);
      segments.push_back({std::move(text), false, segments.empty(), false});
      text.clear();
      AppendAnswer(message.content, &segments);
    } else {
      if (!text.empty() && format.name == PromptTemplate::kPlain && !absl::EndsWith(text, "\n")) text += "\n";
      absl::StrAppend(&text, frame.before_question, message.content);
    }
  }
  if (wants_answer) {
    absl::StrAppend(&text, frame.before_answer);
    segments.push_back({std::move(text), false, segments.empty(), false});
  }
  return segments;
}

std::vector<PromptSegment> RenderMessages(const PromptFormat& format, const std::vector<ChatMessage>& messages,
                                          bool wants_answer) {
  switch (format.name) {
    case PromptTemplate::kChatml:
      return RenderChatml(format, messages, wants_answer);
    case PromptTemplate::kLlama2:
      return RenderLlama2(format, messages);
    case PromptTemplate::kAlpaca:
    case PromptTemplate::kPlain:
      break;
  }
  return RenderFramed(format, messages, wants_answer);
}

}  // namespace

absl::string_view PromptTemplateName(PromptTemplate name) {
  switch (name) {
    case PromptTemplate::kAlpaca:
      return "alpaca";
    case PromptTemplate::kChatml:
      return "chatml";
    case PromptTemplate::kLlama2:
      return "llama2";
    case PromptTemplate::kPlain:
      return "plain";
  }
  return "unknown";
}

absl::StatusOr<PromptFormat> ChoosePromptFormat(absl::string_view name, absl::string_view chat_template,
                                                DataKind kind) {
  PromptFormat format;
  if (name.empty() || name == "auto") {
    if (kind == DataKind::kCompletion || kind == DataKind::kText) {
      format.name = PromptTemplate::kPlain;
    } else if (absl::StrContains(chat_template, kStart)) {
      format.name = PromptTemplate::kChatml;
    } else if (absl::StrContains(chat_template, "[INST]")) {
      format.name = PromptTemplate::kLlama2;
    }
  } else if (name == "chatml") {
    format.name = PromptTemplate::kChatml;
  } else if (name == "llama2") {
    format.name = PromptTemplate::kLlama2;
  } else if (name == "plain") {
    format.name = PromptTemplate::kPlain;
  } else if (name != "alpaca") {
    return absl::InvalidArgumentError(
        absl::StrCat("unknown prompt template \"", name, "\"; known: auto, alpaca, chatml, llama2, plain"));
  }
  if (format.name == PromptTemplate::kChatml) format.default_system = BuiltInSystemMessage(chat_template);
  return format;
}

std::vector<PromptSegment> RenderExample(const PromptFormat& format, DataKind kind, const Example& example) {
  std::vector<PromptSegment> segments;
  switch (kind) {
    case DataKind::kClassification:
    case DataKind::kText:
      segments.push_back({example.text, true, true, true});
      return segments;
    case DataKind::kChat:
      return RenderMessages(format, example.messages, false);
    case DataKind::kInstruction:
    case DataKind::kCompletion:
      break;
  }
  if (kind == DataKind::kCompletion && format.name == PromptTemplate::kPlain) {
    segments.push_back({example.instruction, false, true, false});
    AppendAnswer(example.output, &segments);
    return segments;
  }
  if (format.name == PromptTemplate::kAlpaca || format.name == PromptTemplate::kPlain) {
    const bool has_input = !example.input.empty();
    const Frame frame = FrameOf(format.name, has_input);
    std::string text = absl::StrCat(frame.introduction, frame.before_question, example.instruction);
    if (has_input) absl::StrAppend(&text, frame.before_input, example.input);
    absl::StrAppend(&text, frame.before_answer);
    segments.push_back({std::move(text), false, true, false});
    AppendAnswer(example.output, &segments);
    return segments;
  }
  const std::string question =
      example.input.empty() ? example.instruction : absl::StrCat(example.instruction, "\n\n", example.input);
  return RenderMessages(format, {{"user", question}, {"assistant", example.output}}, false);
}

std::vector<PromptSegment> RenderPrompt(const PromptFormat& format, const std::vector<ChatMessage>& messages) {
  std::vector<PromptSegment> segments = RenderMessages(format, messages, true);
  for (PromptSegment& segment : segments) segment.bears_loss = false;
  return segments;
}

absl::string_view PromptEndMarker(PromptTemplate name) {
  return name == PromptTemplate::kChatml ? absl::string_view(kEnd) : absl::string_view();
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
