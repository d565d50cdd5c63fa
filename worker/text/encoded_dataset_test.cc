#include "worker/text/encoded_dataset.h"

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/support/status_matchers.h"

namespace qst {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::Pair;

constexpr absl::StatusCode kInvalid = absl::StatusCode::kInvalidArgument;

// Every lower-case letter is the token of its number: a = 10, b = 11, ...; <s> 0, </s> 1, line break 2,
// space 3.
std::unique_ptr<Tokenizer> Letters(bool add_bos) {
  TokenizerDefinition definition;
  definition.tokens = {"<s>", "</s>", "\xC4\x8A", "\xC4\xA0", "?4", "?5", "?6", "?7", "?8", "?9"};
  for (char letter = 'a'; letter <= 'z'; ++letter) definition.tokens.emplace_back(1, letter);
  definition.token_types.assign(definition.tokens.size(), TokenizerDefinition::TokenType::kNormal);
  definition.token_types[0] = definition.token_types[1] = TokenizerDefinition::TokenType::kControl;
  definition.pre_tokenizer = "gpt-2";
  definition.bos_id = 0;
  definition.eos_id = 1;
  definition.add_bos = add_bos;
  return Tokenizer::FromDefinition(definition).value();
}

Dataset Parse(const std::string& bytes) { return ParseDataset("d.jsonl", bytes, {}).value(); }

TEST(EncodeClassificationTest, NumbersOfARegressionAreKeptWithTheirTexts) {
  const Dataset data = Parse("{\"text\": \"ab\", \"label\": 2.5}\n{\"text\": \"a\", \"label\": -1}");
  ASSERT_EQ(data.kind, DataKind::kRegression);
  const auto encoded = EncodeClassification(data, *Letters(true), nullptr, 5);
  QST_ASSERT_OK(encoded);
  EXPECT_THAT(encoded->examples[0].tokens, ElementsAre(0, 10, 11));
  EXPECT_EQ(encoded->examples[0].value, 2.5f);
  EXPECT_EQ(encoded->examples[0].label, -1);
  EXPECT_EQ(encoded->examples[1].value, -1.0f);
  const auto labels = LabelSet::FromList({"2.5", "-1"});
  QST_ASSERT_OK(labels);
  EXPECT_THAT(EncodeClassification(data, *Letters(true), &*labels, 5),
              StatusIs(kInvalid, HasSubstr("regression data")));
}

TEST(EncodeClassificationTest, TextsAreCutAtTheRightAndCounted) {
  const Dataset data = Parse(
      "{\"text\": \"abc\", \"label\": \"y\"}\n{\"text\": \"abcdef\", \"label\": \"x\"}\n{\"text\": \"\", \"label\": "
      "\"y\"}");
  const auto labels = LabelSet::FromList({"x", "y", "z"});
  QST_ASSERT_OK(labels);
  auto encoded = EncodeClassification(data, *Letters(true), &*labels, 5);
  QST_ASSERT_OK(encoded);
  ASSERT_EQ(encoded->examples.size(), 3);
  EXPECT_THAT(encoded->examples[0].tokens, ElementsAre(0, 10, 11, 12));
  EXPECT_THAT(encoded->examples[1].tokens, ElementsAre(0, 10, 11, 12, 13));
  EXPECT_THAT(encoded->examples[2].tokens, ElementsAre(0));
  EXPECT_EQ(encoded->examples[0].label, 1);
  EXPECT_EQ(encoded->examples[1].label, 0);
  EXPECT_EQ(encoded->examples[1].line, 2);
  EXPECT_TRUE(encoded->examples[0].target_mask.empty());
  const EncodingStats& stats = encoded->stats;
  EXPECT_EQ(stats.rows, 3);
  EXPECT_EQ(stats.examples, 3);
  EXPECT_EQ(stats.tokens, 10);
  EXPECT_EQ(stats.tokens_p50, 4);
  EXPECT_EQ(stats.tokens_p95, 5);
  EXPECT_EQ(stats.tokens_max, 5);
  EXPECT_EQ(stats.truncated, 1);
  EXPECT_EQ(stats.dropped, 0);
  EXPECT_THAT(stats.label_counts, ElementsAre(Pair("x", 1), Pair("y", 2), Pair("z", 0)));
  EXPECT_THAT(encoded->Lengths(), ElementsAre(4, 5, 1));

  encoded = EncodeClassification(data, *Letters(false), &*labels, 5);
  QST_ASSERT_OK(encoded);
  EXPECT_THAT(encoded->examples[0].tokens, ElementsAre(10, 11, 12));
  EXPECT_THAT(encoded->examples[2].tokens, ElementsAre(1)) << "an empty text is EOS alone";
}

TEST(EncodeClassificationTest, PairsAreJoinedByALineBreak) {
  const Dataset data = Parse("{\"sentence1\": \"a\", \"sentence2\": \"b\", \"label\": \"2.5\"}");
  const auto encoded = EncodeClassification(data, *Letters(false), nullptr, 16);
  QST_ASSERT_OK(encoded);
  EXPECT_THAT(encoded->examples[0].tokens, ElementsAre(10, 2, 11));
  EXPECT_EQ(encoded->examples[0].label, -1);
  EXPECT_EQ(encoded->examples[0].value, 2.5f);
}

TEST(EncodeClassificationTest, RefusesWhatCannotBeClassified) {
  const Dataset data = Parse("{\"text\": \"a\", \"label\": \"x\"}\n{\"text\": \"a\", \"label\": \"q\"}");
  const auto labels = LabelSet::FromList({"x", "y"});
  QST_ASSERT_OK(labels);
  EXPECT_THAT(EncodeClassification(data, *Letters(false), &*labels, 8),
              StatusIs(kInvalid, HasSubstr("d.jsonl line 2")));
  EXPECT_THAT(EncodeClassification(data, *Letters(false), nullptr, 1), StatusIs(kInvalid, HasSubstr("max_length")));
  EXPECT_THAT(EncodeClassification(Parse("{\"text\": \"a\"}"), *Letters(false), nullptr, 8),
              StatusIs(kInvalid, HasSubstr("text data")));
}

TEST(EncodeLanguageModelTest, RowsWithoutTargetsAreDroppedAndCounted) {
  const Dataset data = Parse(
      "{\"prompt\": \"ab\", \"completion\": \"cd\"}\n"
      "{\"prompt\": \"abcdef\", \"completion\": \"g\"}\n"
      "{\"prompt\": \"a\", \"completion\": \"bcdefgh\"}");
  LanguageModelEncoding options;
  options.format.name = PromptTemplate::kPlain;
  options.max_length = 6;
  const auto encoded = EncodeLanguageModel(data, *Letters(true), options);
  QST_ASSERT_OK(encoded);
  ASSERT_EQ(encoded->examples.size(), 2);
  EXPECT_THAT(encoded->examples[0].tokens, ElementsAre(0, 10, 11, 12, 13, 1));
  EXPECT_THAT(encoded->examples[0].target_mask, ElementsAre(0, 0, 0, 1, 1, 1));
  EXPECT_THAT(encoded->examples[1].tokens, ElementsAre(0, 10, 11, 12, 13, 14));
  EXPECT_THAT(encoded->examples[1].target_mask, ElementsAre(0, 0, 1, 1, 1, 1));
  EXPECT_EQ(encoded->examples[1].line, 3);
  EXPECT_EQ(encoded->stats.rows, 3);
  EXPECT_EQ(encoded->stats.examples, 2);
  EXPECT_EQ(encoded->stats.dropped, 1);
  EXPECT_EQ(encoded->stats.truncated, 1);
  EXPECT_EQ(encoded->stats.tokens, 12);
  EXPECT_EQ(encoded->stats.target_tokens, 7);
}

TEST(EncodeLanguageModelTest, PromptBearsLossOnRequest) {
  LanguageModelEncoding options;
  options.format.name = PromptTemplate::kPlain;
  options.train_on_prompt = true;
  const auto encoded =
      EncodeLanguageModel(Parse("{\"prompt\": \"ab\", \"completion\": \"c\"}"), *Letters(true), options);
  QST_ASSERT_OK(encoded);
  EXPECT_THAT(encoded->examples[0].target_mask, ElementsAre(0, 1, 1, 1, 1));
}

TEST(EncodeLanguageModelTest, PlainTextIsLearnedWithItsEnd) {
  const auto encoded = EncodeLanguageModel(Parse("{\"text\": \"ab\"}"), *Letters(false), {});
  QST_ASSERT_OK(encoded);
  EXPECT_THAT(encoded->examples[0].tokens, ElementsAre(10, 11, 1));
  EXPECT_THAT(encoded->examples[0].target_mask, ElementsAre(0, 1, 1));
}

TEST(EncodeLanguageModelTest, DataWithoutAnyTargetIsRefused) {
  LanguageModelEncoding options;
  options.format.name = PromptTemplate::kPlain;
  options.max_length = 3;
  const Dataset data = Parse("{\"prompt\": \"abcdef\", \"completion\": \"g\"}");
  EXPECT_THAT(EncodeLanguageModel(data, *Letters(true), options), StatusIs(kInvalid, HasSubstr("max_length = 3")));
  options.max_length = 0;
  EXPECT_THAT(EncodeLanguageModel(data, *Letters(true), options), StatusIs(kInvalid, HasSubstr("max_length")));
}

}  // namespace
}  // namespace qst
