#include "worker/text/prompt_template.h"

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/support/status_matchers.h"
#include "tests/support/shared_data.h"

namespace qst {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

// Loss-bearing text in braces, EOS as $, BOS as ^.
std::string Show(const std::vector<PromptSegment>& segments) {
  std::string shown;
  for (const PromptSegment& segment : segments) {
    if (segment.begins_turn) shown += "^";
    absl::StrAppend(&shown, segment.bears_loss ? "{" : "", segment.text, segment.ends_turn ? "$" : "",
                    segment.bears_loss ? "}" : "");
  }
  return shown;
}

PromptFormat Format(PromptTemplate name, std::string system = "") {
  PromptFormat format = MakePromptFormat(name);
  if (!system.empty()) format.default_system = std::move(system);
  return format;
}

Example Instruction(const std::string& instruction, const std::string& input, const std::string& output) {
  Example example;
  example.instruction = instruction;
  example.input = input;
  example.output = output;
  return example;
}

Example Chat(std::vector<ChatMessage> messages) {
  Example example;
  example.messages = std::move(messages);
  return example;
}

TEST(PromptTemplateTest, AlpacaHasTwoForms) {
  const PromptFormat alpaca = Format(PromptTemplate::kAlpaca);
  EXPECT_EQ(Show(RenderExample(alpaca, DataKind::kInstruction, Instruction("Add.", "1 2", "3"))),
            "^Below is an instruction that describes a task, paired with an input that provides further context. "
            "Write a response that appropriately completes the request.\n\n### Instruction:\nAdd.\n\n### Input:\n1 2"
            "\n\n### Response:{3$}");
  EXPECT_EQ(Show(RenderExample(alpaca, DataKind::kInstruction, Instruction("Go.", "", "ok"))),
            "^Below is an instruction that describes a task. Write a response that appropriately completes the "
            "request.\n\n### Instruction:\nGo.\n\n### Response:{ok$}");
  EXPECT_EQ(Show(RenderExample(alpaca, DataKind::kChat,
                               Chat({{"user", "q"}, {"assistant", "a"}, {"user", "r"}, {"assistant", "b"}}))),
            "^Below is an instruction that describes a task. Write a response that appropriately completes the "
            "request.\n\n### Instruction:\nq\n\n### Response:{a$}\n\n### Instruction:\nr\n\n### Response:{b$}");
}

TEST(PromptTemplateTest, ChatmlLearnsAnswersWithTheirEndMarker) {
  const PromptFormat chatml = Format(PromptTemplate::kChatml, "Be brief.");
  EXPECT_EQ(Show(RenderExample(chatml, DataKind::kInstruction, Instruction("Add.", "1 2", "3"))),
            "^<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nAdd.\n\n1 2<|im_end|>\n"
            "<|im_start|>assistant\n{3<|im_end|>}\n");
  EXPECT_EQ(Show(RenderExample(
                chatml, DataKind::kChat,
                Chat({{"system", "s"}, {"user", "q"}, {"assistant", "a"}, {"tool", "t"}, {"assistant", "b"}}))),
            "^<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n{a<|im_end|>}\n"
            "<|im_start|>tool\nt<|im_end|>\n<|im_start|>assistant\n{b<|im_end|>}\n");
  EXPECT_EQ(Show(RenderPrompt(chatml, {{"system", "s"}, {"user", "q"}})),
            "^<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n");
  EXPECT_EQ(PromptEndMarker(chatml), "<|im_end|>");
  EXPECT_EQ(PromptEndMarker(Format(PromptTemplate::kLlama3)), "<|eot_id|>");
  EXPECT_EQ(PromptEndMarker(Format(PromptTemplate::kVicuna)), "");
}

TEST(PromptTemplateTest, Llama2WrapsEachTurn) {
  const PromptFormat llama2 = Format(PromptTemplate::kLlama2);
  EXPECT_EQ(Show(RenderExample(
                llama2, DataKind::kChat,
                Chat({{"system", "s"}, {"user", "q"}, {"assistant", "a"}, {"user", "r"}, {"assistant", "b"}}))),
            "^[INST] <<SYS>>\ns\n<</SYS>>\n\nq [/INST]{ a $}^[INST] r [/INST]{ b $}");
  EXPECT_EQ(Show(RenderPrompt(llama2, {{"user", "q"}})), "^[INST] q [/INST]");
}

TEST(PromptTemplateTest, EveryAssistantTurnIsLearnedWithWhatEndsIt) {
  const Example chat =
      Chat({{"system", "s"}, {"user", "q"}, {"assistant", "a"}, {"user", "r"}, {"function_call", "b"}, {"tool", "t"}});
  const std::pair<PromptTemplate, const char*> cases[] = {
      {PromptTemplate::kLlama3,
       "^<|start_header_id|>system<|end_header_id|>\n\ns<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nq<|eot_"
       "id|>"
       "<|start_header_id|>assistant<|end_header_id|>\n\n{a<|eot_id|>}<|start_header_id|>user<|end_header_id|>\n\n"
       "r<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n{b<|eot_id|>}"
       "<|start_header_id|>tool<|end_header_id|>\n\nt<|eot_id|>"},
      {PromptTemplate::kMistral, "^[INST] s\n\nq [/INST]{a$}[INST] r [/INST]{b$}[INST] t [/INST]"},
      {PromptTemplate::kVicuna, "^s USER: q ASSISTANT:{ a$}USER: r ASSISTANT:{ b$}USER: t "},
      {PromptTemplate::kGuanaco, "^s\n### Human: q### Assistant:{ a$}### Human: r### Assistant:{ b$}### Human: t"},
      {PromptTemplate::kZephyr,
       "^<|system|>\ns$\n<|user|>\nq$\n<|assistant|>\n{a$}\n<|user|>\nr$\n<|assistant|>\n{b$}\n<|tool|>\nt$\n"},
  };
  for (const auto& [name, expected] : cases) {
    EXPECT_EQ(Show(RenderExample(Format(name), DataKind::kChat, chat)), expected) << PromptTemplateName(name);
  }
}

TEST(PromptTemplateTest, PromptsEndWhereTheAnswerBegins) {
  const std::vector<ChatMessage> question = {{"user", "q"}};
  EXPECT_EQ(Show(RenderPrompt(Format(PromptTemplate::kGuanaco), question)), "^### Human: q### Assistant:");
  EXPECT_EQ(Show(RenderPrompt(Format(PromptTemplate::kZephyr), question)), "^<|user|>\nq$\n<|assistant|>\n");
  EXPECT_EQ(Show(RenderPrompt(Format(PromptTemplate::kMistral), question)), "^[INST] q [/INST]");
  EXPECT_EQ(Show(RenderPrompt(Format(PromptTemplate::kVicuna, "s"), question)), "^s USER: q ASSISTANT:");
}

TEST(PromptTemplateTest, CustomTemplateIsWhatItsFieldsSay) {
  PromptFormat custom = Format(PromptTemplate::kCustom, "be kind");
  custom.texts = {"<sys>", "</sys>", "<u>", "</u>", "<a> ", "</a>", false};
  EXPECT_EQ(Show(RenderExample(custom, DataKind::kInstruction, Instruction("Add.", "1 2", "3"))),
            "^<sys>be kind</sys><u>Add.\n\n1 2</u><a>{ 3</a>}");
  EXPECT_EQ(Show(RenderExample(custom, DataKind::kCompletion, Instruction("p", "", "c"))),
            "^<sys>be kind</sys><u>p</u><a>{ c</a>}");
  EXPECT_EQ(Show(RenderExample(custom, DataKind::kChat, Chat({{"system", "s"}, {"user", "q"}, {"assistant", "a"}}))),
            "^<sys>s</sys><u>q</u><a>{ a</a>}");
  EXPECT_EQ(PromptEndMarker(custom), "</a>");
  custom.default_system.clear();
  custom.texts = {};
  EXPECT_EQ(Show(RenderExample(custom, DataKind::kChat, Chat({{"assistant", "a"}}))), "^{a$}")
      << "BOS is not learned, even if nothing stands before the answer";
}

TEST(PromptTemplateTest, PlainAddsLineBreaksToInstructionsOnly) {
  const PromptFormat plain = Format(PromptTemplate::kPlain);
  EXPECT_EQ(Show(RenderExample(plain, DataKind::kInstruction, Instruction("Add.", "1 2", "3"))), "^Add.\n1 2\n{3$}");
  EXPECT_EQ(Show(RenderExample(plain, DataKind::kCompletion, Instruction("p", "", "c"))), "^p{c$}");
  EXPECT_EQ(Show(RenderExample(plain, DataKind::kChat, Chat({{"system", "s"}, {"user", "q"}, {"assistant", "a"}}))),
            "^s\nq\n{a$}");
  Example text;
  text.text = "all of it";
  EXPECT_EQ(Show(RenderExample(plain, DataKind::kText, text)), "^{all of it$}");
}

TEST(PromptTemplateTest, ConversationThatEndsWithAQuestionHasNoAnswerToLearnThere) {
  for (const PromptTemplate name :
       {PromptTemplate::kAlpaca, PromptTemplate::kChatml, PromptTemplate::kLlama2, PromptTemplate::kLlama3,
        PromptTemplate::kMistral, PromptTemplate::kGuanaco, PromptTemplate::kZephyr}) {
    int learned = 0;
    for (const PromptSegment& segment :
         RenderExample(Format(name), DataKind::kChat, Chat({{"user", "q"}, {"assistant", "a"}, {"user", "r"}}))) {
      learned += segment.bears_loss;
      EXPECT_EQ(segment.bears_loss, segment.text.find('a') == 0 || segment.text.find(" a") == 0) << segment.text;
    }
    EXPECT_EQ(learned, 1);
    EXPECT_TRUE(RenderExample(Format(name), DataKind::kChat, Chat({})).size() <= 1);
  }
}

TEST(ChoosePromptFormatTest, AutoFollowsTheModelsOwnTemplate) {
  const std::string chatml =
      "{{ '<|im_start|>system\nBe kind<|im_end|>\n' }}{{'<|im_start|>' + message['role'] + '\n'}}";
  auto format = ChoosePromptFormat("auto", chatml, DataKind::kChat);
  QST_ASSERT_OK(format);
  EXPECT_EQ(PromptTemplateName(format->name), "chatml");
  EXPECT_EQ(format->default_system, "Be kind");
  format = ChoosePromptFormat("", "{{ '<|im_start|>system\\nBe kind<|im_end|>\\n' }}", DataKind::kInstruction);
  QST_ASSERT_OK(format);
  EXPECT_EQ(format->default_system, "Be kind") << "with Jinja's escape";
  format = ChoosePromptFormat("", "{{'<|im_start|>system\n' + system + '<|im_end|>'}}", DataKind::kChat);
  QST_ASSERT_OK(format);
  EXPECT_EQ(format->default_system, "") << "not literal text";
  format = ChoosePromptFormat("", "'<|im_start|>system\\n' + x + '<|im_start|>system\\nBe brief<|im_end|>'",
                              DataKind::kChat);
  QST_ASSERT_OK(format);
  EXPECT_EQ(format->default_system, "Be brief") << "the first that is literal";
  EXPECT_EQ(ChoosePromptFormat("auto", "[INST] <<SYS>> {{ x }}", DataKind::kChat)->name, PromptTemplate::kLlama2);
  EXPECT_EQ(ChoosePromptFormat("auto", "[INST] {{ x }}", DataKind::kChat)->name, PromptTemplate::kMistral);
  EXPECT_EQ(ChoosePromptFormat("auto", "### Human: ### Assistant:", DataKind::kChat)->name, PromptTemplate::kGuanaco);
  EXPECT_EQ(DescribePromptFormat(*ChoosePromptFormat("auto", "", DataKind::kChat)),
            "alpaca (the model has no chat template)");
  EXPECT_EQ(DescribePromptFormat(*ChoosePromptFormat("auto", "<start_of_turn>", DataKind::kChat)),
            "alpaca (the model's chat template is not known)");
  EXPECT_EQ(DescribePromptFormat(*ChoosePromptFormat("auto", "", DataKind::kCompletion)),
            "plain (completion data are rendered already)");
  // Phi-3's, whose markers are like Zephyr's.
  EXPECT_EQ(ChoosePromptFormat("auto", "<|user|> <|end|> <|assistant|> eos_token", DataKind::kChat)->name,
            PromptTemplate::kAlpaca);
  EXPECT_EQ(ChoosePromptFormat("auto", chatml, DataKind::kCompletion)->name, PromptTemplate::kPlain);
  EXPECT_EQ(ChoosePromptFormat("chatml", "", DataKind::kCompletion)->name, PromptTemplate::kChatml);
  EXPECT_EQ(ChoosePromptFormat("plain", chatml, DataKind::kChat)->name, PromptTemplate::kPlain);
  EXPECT_THAT(ChoosePromptFormat("alpca", "", DataKind::kChat),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("alpaca, chatml, llama2, llama3, mistral")));
}

TEST(ChoosePromptFormatTest, CustomTextsWinOverTheModelsOwn) {
  const TurnTexts texts = {"", "", "Q: ", "\n", "A: ", "\n", false};
  for (const DataKind kind : {DataKind::kChat, DataKind::kCompletion}) {
    for (const char* name : {"", "auto", "custom"}) {
      const auto format = ChoosePromptFormat(name, "<|im_start|>", kind, &texts, "s");
      QST_ASSERT_OK(format);
      EXPECT_EQ(format->name, PromptTemplate::kCustom);
      EXPECT_EQ(format->texts.user_prefix, "Q: ");
      EXPECT_EQ(format->default_system, "s");
    }
  }
  EXPECT_THAT(ChoosePromptFormat("custom", "", DataKind::kChat),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("data.custom_template")));
}

TEST(ChoosePromptFormatTest, BosIsWrittenOnlyIfTheModelsTemplateNamesIt) {
  EXPECT_FALSE(ChoosePromptFormat("auto", "<|im_start|>", DataKind::kChat)->has_bos);
  EXPECT_TRUE(ChoosePromptFormat("auto", "bos_token <|im_start|>", DataKind::kChat)->has_bos);
  EXPECT_TRUE(ChoosePromptFormat("chatml", "", DataKind::kChat)->has_bos) << "there is no template that says anything";
  PromptFormat format = Format(PromptTemplate::kChatml);
  format.has_bos = false;
  EXPECT_EQ(Show(RenderExample(format, DataKind::kChat, Chat({{"user", "q"}})))[0], '<');
}

// The text of a conversation is what the model's own template makes of it: compared with the library's
// apply_chat_template by ids, which were made once from the same conversation.
TEST(EncodeSegmentsTest, SmolLm2ConversationHasTheIdsOfItsOwnTemplate) {
  const auto folder = SharedDataPath("tokenizers/smollm2");
  if (!folder.has_value()) GTEST_SKIP() << "no shared data: tokenizers/smollm2";
  const auto tokenizer = Tokenizer::FromModelFolder(*folder);
  QST_ASSERT_OK(tokenizer);
  const auto format = ChoosePromptFormat("auto", (*tokenizer)->chat_template(), DataKind::kChat);
  QST_ASSERT_OK(format);
  const auto encoded = EncodeSegments(
      RenderExample(*format, DataKind::kChat, Chat({{"user", "What is 2+2?"}, {"assistant", "It's 4."}})), **tokenizer);
  QST_ASSERT_OK(encoded);
  EXPECT_THAT(encoded->tokens, ElementsAre(1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28,
                                           7018, 411, 407, 19712, 8182, 2, 198, 1, 4093, 198, 1780, 314, 216, 34, 27,
                                           34, 47, 2, 198, 1, 520, 9531, 198, 1589, 506, 216, 36, 30, 2, 198));
  // "It's 4." and the end marker.
  EXPECT_EQ(std::string(encoded->target_mask.begin(), encoded->target_mask.end()),
            absl::StrCat(std::string(37, '\0'), std::string(6, '\1'), std::string(1, '\0')));
}

std::unique_ptr<Tokenizer> MakeTokenizer(bool has_prefix_space) {
  TokenizerDefinition definition;
  definition.kind = TokenizerDefinition::Kind::kSentencePieceBpe;
  definition.tokens = {"<s>", "</s>", "\xE2\x96\x81", "a", "b"};
  definition.token_types.assign(5, TokenizerDefinition::TokenType::kNormal);
  definition.token_types[0] = definition.token_types[1] = TokenizerDefinition::TokenType::kControl;
  definition.scores = {0, 0, 0, 0, 0};
  definition.bos_id = 0;
  definition.eos_id = 1;
  definition.add_bos = true;
  definition.add_space_prefix = has_prefix_space;
  return Tokenizer::FromDefinition(definition).value();
}

TEST(EncodeSegmentsTest, MaskCoversTheAnswerAndItsEosExactly) {
  const auto encoded = EncodeSegments({{"ab", false, true, false}, {"b", true, false, true}, {"a", false, true, false}},
                                      *MakeTokenizer(false));
  QST_ASSERT_OK(encoded);
  EXPECT_THAT(encoded->tokens, ElementsAre(0, 3, 4, 4, 1, 0, 3));
  EXPECT_THAT(encoded->target_mask, ElementsAre(0, 0, 0, 1, 1, 0, 0));
}

TEST(EncodeSegmentsTest, SpaceOfTheTokenizerStandsForTheSegmentsOwn) {
  // [INST] q [/INST] and " a ": one space between, as in the text, not two.
  auto encoded = EncodeSegments({{"a", false, true, false}, {" b", true, false, true}}, *MakeTokenizer(true));
  QST_ASSERT_OK(encoded);
  EXPECT_THAT(encoded->tokens, ElementsAre(0, 2, 3, 2, 4, 1));
  encoded = EncodeSegments({{"a", false, true, false}, {" b", true, false, true}}, *MakeTokenizer(false));
  QST_ASSERT_OK(encoded);
  EXPECT_THAT(encoded->tokens, ElementsAre(0, 3, 2, 4, 1));
}

TEST(EncodeSegmentsTest, FirstTokenIsNeverATarget) {
  const auto encoded = EncodeSegments({{"ab", true, false, false}}, *MakeTokenizer(false));
  QST_ASSERT_OK(encoded);
  EXPECT_THAT(encoded->target_mask, ElementsAre(0, 1));
  const auto nothing = EncodeSegments({}, *MakeTokenizer(false));
  QST_ASSERT_OK(nothing);
  EXPECT_TRUE(nothing->tokens.empty());
}

}  // namespace
}  // namespace qst
