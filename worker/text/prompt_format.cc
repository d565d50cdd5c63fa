#include "worker/text/prompt_format.h"

#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"

namespace qst {
namespace {

constexpr std::pair<PromptTemplate, absl::string_view> kNames[] = {
    {PromptTemplate::kAlpaca, "alpaca"},   {PromptTemplate::kChatml, "chatml"},   {PromptTemplate::kLlama2, "llama2"},
    {PromptTemplate::kLlama3, "llama3"},   {PromptTemplate::kMistral, "mistral"}, {PromptTemplate::kVicuna, "vicuna"},
    {PromptTemplate::kGuanaco, "guanaco"}, {PromptTemplate::kZephyr, "zephyr"},   {PromptTemplate::kPlain, "plain"},
    {PromptTemplate::kCustom, "custom"}};

// What models of this kind were trained with.
constexpr char kVicunaSystem[] =
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and "
    "polite answers to the user's questions.";
// Where Llama 3.1 and later tell the date, this one: the same text every day.
constexpr char kLlama31Preamble[] = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n";

// The system message that a ChatML template writes where a conversation has none: text that stands in the template
// literally, behind the opening of a system turn. Empty if there is none.
std::string BuiltInSystemMessage(absl::string_view chat_template) {
  constexpr absl::string_view kOpening = "<|im_start|>system";
  for (size_t begin = chat_template.find(kOpening); begin != absl::string_view::npos;
       begin = chat_template.find(kOpening, begin + 1)) {
    absl::string_view rest = chat_template.substr(begin + kOpening.size());
    // A line break, as it is or as Jinja's escape.
    if (!absl::ConsumePrefix(&rest, "\n") && !absl::ConsumePrefix(&rest, "\\n")) continue;
    const size_t end = rest.find("<|im_end|>");
    if (end == absl::string_view::npos) return "";
    const absl::string_view message = rest.substr(0, end);
    // Put together from parts.
    if (message.find_first_of("{}'\"\\") != absl::string_view::npos) continue;
    return std::string(message);
  }
  return "";
}

// The template whose markers the Jinja text has.
std::optional<PromptTemplate> Recognise(absl::string_view text) {
  const auto has = [text](absl::string_view part) { return absl::StrContains(text, part); };
  if (has("<|im_start|>")) return PromptTemplate::kChatml;
  if (has("<|start_header_id|>")) return PromptTemplate::kLlama3;
  if (has("[INST]")) return has("<<SYS>>") ? PromptTemplate::kLlama2 : PromptTemplate::kMistral;
  // Others that write <|user|> end turns with a marker of their own, not with EOS.
  if (has("<|user|>") && has("<|assistant|>") && has("eos_token") && !has("<|end|>")) return PromptTemplate::kZephyr;
  if (has("USER:") && has("ASSISTANT:")) return PromptTemplate::kVicuna;
  if (has("### Human:") && has("### Assistant:")) return PromptTemplate::kGuanaco;
  if (has("### Instruction:") && has("### Response:")) return PromptTemplate::kAlpaca;
  return std::nullopt;
}

// Takes over what the model's own edition of its template does differently.
void Adapt(absl::string_view text, PromptFormat* format) {
  const auto has = [text](absl::string_view part) { return absl::StrContains(text, part); };
  format->has_bos = has("bos_token");
  if (format->name == PromptTemplate::kChatml) format->default_system = BuiltInSystemMessage(text);
  if (format->name == PromptTemplate::kLlama3 && has("Cutting Knowledge Date")) {
    format->system_preamble = kLlama31Preamble;
  }
  if (format->name == PromptTemplate::kMistral) {
    if (has("' [INST] '") || has("\" [INST] \"")) {
      format->mistral_open = " [INST] ";
      format->mistral_answer = " ";
    } else if (!has(" [/INST]")) {
      format->mistral_close = "[/INST]";
      format->mistral_answer = " ";
    }
  }
}

PromptFormat ChooseAuto(absl::string_view chat_template, DataKind kind) {
  if (kind == DataKind::kCompletion || kind == DataKind::kText) {
    PromptFormat format = MakePromptFormat(PromptTemplate::kPlain);
    format.reason = absl::StrCat(DataKindName(kind), " data are rendered already");
    return format;
  }
  const std::optional<PromptTemplate> own = Recognise(chat_template);
  PromptFormat format = MakePromptFormat(own.value_or(PromptTemplate::kAlpaca));
  if (own.has_value()) {
    Adapt(chat_template, &format);
    format.reason = "recognised in the model's chat template";
  } else {
    format.reason = chat_template.empty() ? "the model has no chat template" : "the model's chat template is not known";
  }
  return format;
}

}  // namespace

absl::string_view PromptTemplateName(PromptTemplate name) {
  for (const auto& [known, text] : kNames) {
    if (known == name) return text;
  }
  return "unknown";
}

std::string DescribePromptFormat(const PromptFormat& format) {
  return absl::StrCat(PromptTemplateName(format.name), format.reason.empty() ? "" : " (", format.reason,
                      format.reason.empty() ? "" : ")");
}

PromptFormat MakePromptFormat(PromptTemplate name) {
  PromptFormat format;
  format.name = name;
  if (name == PromptTemplate::kVicuna) format.default_system = kVicunaSystem;
  return format;
}

absl::StatusOr<PromptFormat> ChoosePromptFormat(absl::string_view name, absl::string_view chat_template, DataKind kind,
                                                const TurnTexts* custom, absl::string_view custom_system) {
  const bool is_auto = name.empty() || name == "auto";
  if (is_auto && custom == nullptr) return ChooseAuto(chat_template, kind);
  if (is_auto) name = PromptTemplateName(PromptTemplate::kCustom);
  for (const auto& [known, text] : kNames) {
    if (text != name) continue;
    PromptFormat format = MakePromptFormat(known);
    format.reason = "as given";
    if (known == PromptTemplate::kCustom) {
      if (custom == nullptr) return absl::InvalidArgumentError("the template custom needs data.custom_template");
      format.texts = *custom;
      format.default_system = std::string(custom_system);
    } else if (Recognise(chat_template) == known) {
      Adapt(chat_template, &format);
    }
    return format;
  }
  std::vector<absl::string_view> names = {"auto"};
  for (const auto& [known, text] : kNames) names.push_back(text);
  return absl::InvalidArgumentError(
      absl::StrCat("unknown prompt template \"", name, "\"; known: ", absl::StrJoin(names, ", ")));
}

}  // namespace qst
