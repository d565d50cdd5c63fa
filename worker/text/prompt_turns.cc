#include "worker/text/prompt_turns.h"

#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "worker/text/utf8.h"

namespace qst {
namespace {

// The fixed texts of the Alpaca format: models know it by exactly these.
constexpr char kAlpacaIntroduction[] =
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.";
constexpr char kAlpacaIntroductionWithInput[] =
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
    "response that appropriately completes the request.";
constexpr char kAlpacaResponse[] = "\n\n### Response:";

bool IsAnswer(const std::string& role) { return role == "assistant" || role == "function_call"; }

std::string Trim(absl::string_view text) {
  text = text.substr(0, TrailingSpaceStart(text));
  return std::string(text.substr(LeadingSpaceEnd(text)));
}

// A template that is nothing but texts around turns.
struct Markers {
  // Around the name of the turn's role, before every turn; empty: the prefixes below instead.
  std::string role_open, role_close;
  TurnTexts texts;
  // After an answer with its suffix; not learned.
  std::string after_answer;
  bool eos_after_every_turn = false;  // before the suffix
  bool trims = false;
  // As Llama 3.1 calls the role of a tool's answer.
  std::string tool_role = "tool";
};

Markers MarkersOf(const PromptFormat& format) {
  Markers markers;
  TurnTexts& texts = markers.texts;
  texts.eos_after_answer = false;
  const auto end_turns_with = [&texts](const std::string& marker, const std::string& after) {
    texts.system_suffix = texts.user_suffix = marker + after;
    texts.assistant_suffix = marker;
  };
  switch (format.name) {
    case PromptTemplate::kChatml:
      markers.role_open = "<|im_start|>";
      markers.role_close = "\n";
      end_turns_with("<|im_end|>", "\n");
      markers.after_answer = "\n";
      break;
    case PromptTemplate::kLlama3:
      markers.role_open = "<|start_header_id|>";
      markers.role_close = "<|end_header_id|>\n\n";
      end_turns_with("<|eot_id|>", "");
      markers.trims = true;
      if (!format.system_preamble.empty()) markers.tool_role = "ipython";
      break;
    case PromptTemplate::kZephyr:
      markers.role_open = "<|";
      markers.role_close = "|>\n";
      texts.system_suffix = texts.user_suffix = markers.after_answer = "\n";
      markers.eos_after_every_turn = texts.eos_after_answer = true;
      break;
    case PromptTemplate::kVicuna:
      texts = {"", " ", "USER: ", " ", "ASSISTANT: ", "", true};
      break;
    case PromptTemplate::kGuanaco:
      texts = {"", "\n", "### Human: ", "", "### Assistant: ", "", true};
      break;
    default:
      texts = format.texts;
  }
  return markers;
}

class MarkedTurns {
 public:
  explicit MarkedTurns(const PromptFormat& format) : format_(format), markers_(MarkersOf(format)) {}

  std::vector<PromptSegment> Render(const std::vector<ChatMessage>& messages, bool wants_answer) && {
    const bool has_system = !messages.empty() && messages[0].role == "system";
    if (!has_system && !(format_.default_system.empty() && format_.system_preamble.empty())) {
      AddTurn("system", format_.default_system);
    }
    for (const ChatMessage& message : messages) {
      const std::string content = markers_.trims ? Trim(message.content) : message.content;
      IsAnswer(message.role) ? AddAnswer(content) : AddTurn(message.role, content);
    }
    if (wants_answer) Add(Before("assistant"));
    if (!text_.empty()) Flush(false);
    return std::move(segments_);
  }

 private:
  void Add(absl::string_view text) { absl::StrAppend(&text_, text); }
  void Flush(bool ends_turn) {
    segments_.push_back({std::move(text_), false, format_.has_bos && segments_.empty(), ends_turn});
    text_.clear();
  }
  std::string Before(const std::string& role) const {
    if (!markers_.role_open.empty()) {
      return absl::StrCat(markers_.role_open, role == "tool" ? markers_.tool_role : role, markers_.role_close);
    }
    if (role == "system") return markers_.texts.system_prefix;
    if (role != "assistant") return markers_.texts.user_prefix;
    // The space goes to the answer.
    return std::string(absl::StripSuffix(markers_.texts.assistant_prefix, " "));
  }

  void AddTurn(const std::string& role, const std::string& content) {
    const bool is_system = role == "system";
    Add(Before(role));
    if (is_system) Add(format_.system_preamble);
    Add(content);
    if (markers_.eos_after_every_turn) Flush(true);
    Add(is_system ? markers_.texts.system_suffix : markers_.texts.user_suffix);
  }

  void AddAnswer(const std::string& content) {
    Add(Before("assistant"));
    // Also if empty at the very beginning: BOS is never learned.
    if (!text_.empty() || segments_.empty()) Flush(false);
    const TurnTexts& texts = markers_.texts;
    const bool has_space = markers_.role_open.empty() && absl::EndsWith(texts.assistant_prefix, " ");
    segments_.push_back(
        {absl::StrCat(has_space ? " " : "", content, texts.assistant_suffix), true, false, texts.eos_after_answer});
    text_ = markers_.after_answer;
  }

  const PromptFormat& format_;
  const Markers markers_;
  std::vector<PromptSegment> segments_;
  std::string text_;  // of the next segment that bears no loss
};

// Llama 2 and Mistral: the system's text is part of the first question.
std::vector<PromptSegment> RenderInst(const PromptFormat& format, const std::vector<ChatMessage>& messages) {
  const bool is_llama2 = format.name == PromptTemplate::kLlama2;
  std::vector<PromptSegment> segments;
  std::string system = format.default_system;
  std::string question;
  bool has_question = false;
  auto flush = [&] {
    if (!has_question && system.empty()) return;
    const bool has_bos = format.has_bos && (is_llama2 || segments.empty());
    if (is_llama2) {
      const std::string before = system.empty() ? "" : absl::StrCat("<<SYS>>\n", system, "\n<</SYS>>\n\n");
      segments.push_back({absl::StrCat("[INST] ", Trim(before + question), " [/INST]"), false, has_bos, false});
    } else {
      const std::string before = system.empty() ? "" : absl::StrCat(system, "\n\n");
      segments.push_back(
          {absl::StrCat(format.mistral_open, before, question, format.mistral_close), false, has_bos, false});
    }
    system.clear();
    question.clear();
    has_question = false;
  };
  for (const ChatMessage& message : messages) {
    if (message.role == "system") {
      system = message.content;
    } else if (IsAnswer(message.role)) {
      flush();
      segments.push_back({is_llama2 ? absl::StrCat(" ", Trim(message.content), " ")
                                    : absl::StrCat(format.mistral_answer, message.content),
                          true, false, true});
    } else {
      // Two questions in a row, or the result of a function: one turn.
      question = has_question ? absl::StrCat(question, "\n", message.content) : message.content;
      has_question = true;
    }
  }
  flush();
  return segments;
}

// Alpaca and plain.
std::vector<PromptSegment> RenderFramed(const PromptFormat& format, const std::vector<ChatMessage>& messages,
                                        bool wants_answer) {
  const PromptFrame frame = PromptFrameOf(format.name, false);
  const bool is_plain = format.name == PromptTemplate::kPlain;
  std::vector<PromptSegment> segments;
  std::string text = frame.introduction;
  auto flush = [&] {
    segments.push_back({std::move(text), false, format.has_bos && segments.empty(), false});
    text.clear();
  };
  for (const ChatMessage& message : messages) {
    if (message.role == "system") {
      text = absl::StrCat(message.content, is_plain ? "\n" : "");
    } else if (IsAnswer(message.role)) {
      absl::StrAppend(&text, frame.before_answer);
      flush();
      segments.push_back({message.content, true, false, true});
    } else {
      if (!text.empty() && is_plain && !absl::EndsWith(text, "\n")) text += "\n";
      absl::StrAppend(&text, frame.before_question, message.content);
    }
  }
  if (wants_answer) {
    absl::StrAppend(&text, frame.before_answer);
    flush();
  }
  return segments;
}

}  // namespace

PromptFrame PromptFrameOf(PromptTemplate name, bool has_input) {
  if (name == PromptTemplate::kPlain) return {"", "", "\n", "\n"};
  return {has_input ? kAlpacaIntroductionWithInput : kAlpacaIntroduction, "\n\n### Instruction:\n", "\n\n### Input:\n",
          kAlpacaResponse};
}

std::vector<PromptSegment> RenderTurns(const PromptFormat& format, const std::vector<ChatMessage>& messages,
                                       bool wants_answer) {
  switch (format.name) {
    case PromptTemplate::kLlama2:
    case PromptTemplate::kMistral:
      return RenderInst(format, messages);
    case PromptTemplate::kAlpaca:
    case PromptTemplate::kPlain:
      return RenderFramed(format, messages, wants_answer);
    default:
      return MarkedTurns(format).Render(messages, wants_answer);
  }
}

std::string PromptEndMarker(const PromptFormat& format) {
  if (format.name == PromptTemplate::kCustom) return Trim(format.texts.assistant_suffix);
  const bool has_marker = format.name == PromptTemplate::kChatml || format.name == PromptTemplate::kLlama3;
  return has_marker ? MarkersOf(format).texts.assistant_suffix : "";
}

}  // namespace qst
