// Conversations rendered as apply_chat_template of transformers renders them (tests/oracle/templates_golden.py).
#include <fstream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "proto/support/status_matchers.h"
#include "worker/text/prompt_template.h"

namespace qst {
namespace {

using nlohmann::json;

json ReadGolden() {
  std::ifstream file("worker/text/testdata/templates_golden.json");
  return json::parse(file);
}

std::vector<ChatMessage> MessagesOf(const json& list, std::size_t count) {
  std::vector<ChatMessage> messages;
  for (std::size_t i = 0; i < count; ++i) {
    messages.push_back({list[i]["role"].get<std::string>(), list[i]["content"].get<std::string>()});
  }
  return messages;
}

std::string TextOf(const std::vector<PromptSegment>& segments, const json& tokens) {
  std::string text;
  for (const PromptSegment& segment : segments) {
    absl::StrAppend(&text, segment.begins_turn ? tokens["bos"].get<std::string>() : "", segment.text,
                    segment.ends_turn ? tokens["eos"].get<std::string>() : "");
  }
  return text;
}

TEST(PromptGoldenTest, ConversationsEqualTheModelsOwnTemplates) {
  const json golden = ReadGolden();
  ASSERT_GE(golden["templates"].size(), 11u);
  for (const json& entry : golden["templates"]) {
    SCOPED_TRACE(entry["edition"].get<std::string>());
    const auto format = ChoosePromptFormat("auto", entry["template"].get<std::string>(), DataKind::kChat);
    QST_ASSERT_OK(format);
    EXPECT_EQ(PromptTemplateName(format->name), entry["name"].get<std::string>());
    EXPECT_EQ(format->reason, "recognised in the model's chat template");
    for (const json& item : entry["cases"]) {
      Example example;
      example.messages = MessagesOf(item["messages"], item["messages"].size());
      EXPECT_EQ(TextOf(RenderExample(*format, DataKind::kChat, example), entry), item["text"].get<std::string>());
      const auto prompt = RenderPrompt(*format, MessagesOf(item["messages"], item["messages"].size() - 1));
      EXPECT_EQ(TextOf(prompt, entry), item["prompt"].get<std::string>());
    }
  }
}

// A template that is asked for by name is the model's own edition of it, if it has one.
TEST(PromptGoldenTest, TheNameGivesTheSameAsTheModelsTemplate) {
  const json golden = ReadGolden();
  for (const json& entry : golden["templates"]) {
    const std::string text = entry["template"].get<std::string>();
    const auto named = ChoosePromptFormat(entry["name"].get<std::string>(), text, DataKind::kChat);
    const auto own = ChoosePromptFormat("auto", text, DataKind::kChat);
    QST_ASSERT_OK(named);
    QST_ASSERT_OK(own);
    for (const json& item : entry["cases"]) {
      Example example;
      example.messages = MessagesOf(item["messages"], item["messages"].size());
      EXPECT_EQ(TextOf(RenderExample(*named, DataKind::kChat, example), entry),
                TextOf(RenderExample(*own, DataKind::kChat, example), entry));
    }
  }
}

// Without a model's template at hand: the edition that most models have.
TEST(PromptGoldenTest, NamesAloneGiveTheCommonEdition) {
  const json golden = ReadGolden();
  int num_compared = 0;
  for (const json& entry : golden["templates"]) {
    const std::string edition = entry["edition"].get<std::string>();
    if (edition != "Llama 2" && edition != "Llama 3" && edition != "Mistral v0.1" && edition != "Vicuna v1.1") continue;
    const auto format = ChoosePromptFormat(entry["name"].get<std::string>(), "", DataKind::kChat);
    QST_ASSERT_OK(format);
    for (const json& item : entry["cases"]) {
      Example example;
      example.messages = MessagesOf(item["messages"], item["messages"].size());
      EXPECT_EQ(TextOf(RenderExample(*format, DataKind::kChat, example), entry), item["text"].get<std::string>());
      ++num_compared;
    }
  }
  EXPECT_EQ(num_compared, 5 + 6 + 3 + 5);
}

}  // namespace
}  // namespace qst
