// Which prompt template, and what may differ between models that use it.
#ifndef QST_WORKER_TEXT_PROMPT_FORMAT_H_
#define QST_WORKER_TEXT_PROMPT_FORMAT_H_

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "worker/text/dataset.h"

namespace qst {

// In examples, q is the user's text, a the answer, s the system's; BOS and EOS are the tokenizer's.
enum class PromptTemplate {
  // The texts of Stanford Alpaca, with and without input; the prompt ends in "### Response:".
  kAlpaca,
  // <|im_start|>ROLE, line break, text, <|im_end|>, line break; the end marker is learned.
  kChatml,
  // BOS[INST] <<SYS>>...<</SYS>> q [/INST] a EOS; BOS and EOS around each turn.
  kLlama2,
  // <|start_header_id|>ROLE<|end_header_id|>, two line breaks, text, <|eot_id|>; that is learned.
  kLlama3,
  // BOS[INST] s\n\nq [/INST]a EOS
  kMistral,
  // "s USER: q ASSISTANT: a" EOS
  kVicuna,
  // "### Human: q### Assistant: a" EOS: the form of the OpenAssistant data that Guanaco was trained on.
  kGuanaco,
  // "<|user|>\nq" EOS "\n<|assistant|>\na" EOS "\n"
  kZephyr,
  // Nothing: instruction, input and output with one line break between; prompt and completion with none.
  kPlain,
  // What TurnTexts says.
  kCustom,
};

// What stands around the turns of a conversation (kCustom).
struct TurnTexts {
  std::string system_prefix, system_suffix;
  std::string user_prefix, user_suffix;
  // A space that the prefix ends with is learned with the answer: tokenizers join it to the first word.
  std::string assistant_prefix, assistant_suffix;
  bool eos_after_answer = true;
};

struct PromptFormat {
  PromptTemplate name = PromptTemplate::kAlpaca;
  // What the system says in a conversation (or to an instruction) that has no system message; empty: nothing. Not for
  // kAlpaca and kPlain.
  std::string default_system = "";
  // kLlama3: stands in the system's turn before its text, and there is such a turn always.
  std::string system_preamble = "";
  // kMistral: between "[INST]" and its neighbours, which differ between editions of the model.
  std::string mistral_open = "[INST] ";
  std::string mistral_close = " [/INST]";
  std::string mistral_answer = "";
  TurnTexts texts = {};
  // BOS where the template has it and the tokenizer adds it; false: nowhere.
  bool has_bos = true;
  // Why it was chosen, for people.
  std::string reason = "";
};

absl::string_view PromptTemplateName(PromptTemplate name);

// "chatml (recognised in the model's chat template)".
std::string DescribePromptFormat(const PromptFormat& format);

// The template with what it has built in.
PromptFormat MakePromptFormat(PromptTemplate name);

// `name` is "auto" (or empty) or a template's name. Auto takes `custom` if it is given; plain for data that are
// rendered already (kCompletion, kText); else the model's own, recognised by the markers in its chat template (Jinja
// text), with the system message that this has built in and with BOS only if it names bos_token; alpaca if none is
// known. Errors  kInvalidArgument: another name (the known ones are listed); custom without `custom`.
absl::StatusOr<PromptFormat> ChoosePromptFormat(absl::string_view name, absl::string_view chat_template, DataKind kind,
                                                const TurnTexts* custom = nullptr,
                                                absl::string_view custom_system = "");

}  // namespace qst

#endif  // QST_WORKER_TEXT_PROMPT_FORMAT_H_
