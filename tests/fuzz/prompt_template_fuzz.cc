// A model's chat template, and the texts of a custom one, are anybody's: choosing and rendering must hold for any
// bytes, and no answer, nor what it answers, may get lost.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "worker/text/prompt_template.h"

namespace {

void Check(const qst::PromptFormat& format) {
  const std::vector<qst::ChatMessage> messages = {
      {"user", "Q1"}, {"assistant", "A1"}, {"tool", "T1"}, {"function_call", "A2"}, {"user", "Q2"}};
  qst::Example example;
  example.messages = messages;
  std::string learned, rest;
  bool is_first = true;
  for (const qst::PromptSegment& segment : qst::RenderExample(format, qst::DataKind::kChat, example)) {
    if (is_first && segment.bears_loss) std::abort();
    is_first = false;
    absl::StrAppend(segment.bears_loss ? &learned : &rest, segment.text);
  }
  for (const char* answer : {"A1", "A2"}) {
    if (!absl::StrContains(learned, answer)) std::abort();
  }
  // What follows the last answer may be left out: nothing is learned from it.
  for (const char* other : {"Q1", "T1"}) {
    if (!absl::StrContains(rest, other)) std::abort();
  }
  for (const qst::PromptSegment& segment : qst::RenderPrompt(format, messages)) {
    if (segment.bears_loss) std::abort();
  }
  qst::PromptEndMarker(format);
  qst::DescribePromptFormat(format);
}

}  // namespace

// Parts between zero bytes: the chat template, then the fields of a custom one.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::vector<std::string> parts =
      absl::StrSplit(absl::string_view(reinterpret_cast<const char*>(data), size), absl::MaxSplits('\0', 7));
  parts.resize(8);
  for (const char* name : {"auto", "chatml", "llama2", "llama3", "mistral", "vicuna", "guanaco", "zephyr"}) {
    const auto format = qst::ChoosePromptFormat(name, parts[0], qst::DataKind::kChat);
    if (!format.ok()) std::abort();
    Check(*format);
  }
  const qst::TurnTexts texts = {parts[1], parts[2], parts[3], parts[4], parts[5], parts[6], size % 2 == 0};
  const auto custom = qst::ChoosePromptFormat("", parts[0], qst::DataKind::kInstruction, &texts, parts[7]);
  if (!custom.ok() || custom->name != qst::PromptTemplate::kCustom) std::abort();
  Check(*custom);
  return 0;
}
