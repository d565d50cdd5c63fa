#include "client/describe_view.h"

#include <sstream>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace qst {
namespace {

using testing::ContainsRegex;
using testing::HasSubstr;
using testing::Not;

TEST(DescribeViewTest, VisibleTextSpellsControlCharactersOut) {
  EXPECT_EQ(VisibleText("a\n\tb\r\x1b[0m\x7f"), "a\\n\\tb\\r\\x1b[0m\\x7f");
  EXPECT_EQ(VisibleText("\xc4\xa0x"), "\xc4\xa0x");
}

TEST(DescribeViewTest, SummaryHasALineForEverythingThatIsThere) {
  v1::DescribeDatasetResponse description;
  description.set_kind("classification");
  description.set_format("tsv");
  description.add_columns("sentence");
  description.add_columns("label");
  description.set_num_examples(3);
  auto& label = *description.add_labels();
  label.set_label("1");
  label.set_count(2);
  std::ostringstream without_model;
  PrintSummary(without_model, description, 512);
  EXPECT_THAT(without_model.str(), HasSubstr("columns  sentence, label\nrows     3\nlabels   1 2\n"));
  EXPECT_THAT(without_model.str(), Not(HasSubstr("tokens")));
  auto& tokens = *description.mutable_tokens();
  tokens.set_total(90);
  tokens.set_target(40);
  tokens.set_p50(7);
  tokens.set_truncated(1);
  tokens.set_without_target(1);
  description.set_template_("chatml (recognised)");
  std::ostringstream with_model;
  PrintSummary(with_model, description, 512);
  EXPECT_THAT(with_model.str(), ContainsRegex("tokens +90, of which 40 bear loss"));
  EXPECT_THAT(with_model.str(), ContainsRegex("50 % 7"));
  EXPECT_THAT(with_model.str(), ContainsRegex("truncated +1 longer than 512 tokens; 1 have nothing to learn"));
  EXPECT_THAT(with_model.str(), ContainsRegex("template +chatml"));
}

TEST(DescribeViewTest, LossIsMarkedInColourOrInBrackets) {
  v1::DescribeDatasetResponse::RenderedExample example;
  example.set_line(7);
  example.set_is_truncated(true);
  example.add_segments()->set_text("q\x1b[2J");
  auto& answer = *example.add_segments();
  answer.set_text("a</s>");
  answer.set_bears_loss(true);
  answer.add_token_ids(5);
  std::ostringstream terminal, file;
  PrintExample(terminal, example, "jsonl", true);
  EXPECT_THAT(terminal.str(), HasSubstr("q\\x1b[2J\x1b[1;32ma</s>\x1b[0m\n"));
  PrintExample(file, example, "json", false);
  EXPECT_EQ(file.str(), "\n--- element 7: 1 tokens, 1 bear loss, cut ---\nq\\x1b[2J[[a</s>]]\n");
}

}  // namespace
}  // namespace qst
