#include "worker/text/dataset.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/support/status_matchers.h"
#include "tests/support/shared_data.h"
#include "worker/text/table.h"

namespace qst {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::StartsWith;

constexpr absl::StatusCode kInvalid = absl::StatusCode::kInvalidArgument;

TEST(DatasetTest, ReadsClassificationRowsFromJsonl) {
  const auto data =
      ParseDataset("d.jsonl", "{\"text\": \"a\\u00e9\", \"label\": 1}\n\n{\"label\": \"x\", \"text\": \"b\"}", {});
  QST_ASSERT_OK(data);
  EXPECT_EQ(data->kind, DataKind::kClassification);
  ASSERT_EQ(data->examples.size(), 2);
  EXPECT_EQ(data->examples[0].text, "a\xC3\xA9");
  EXPECT_EQ(data->examples[0].label, "1");
  EXPECT_EQ(data->examples[1].label, "x");
  EXPECT_EQ(data->examples[1].line, 3);
}

TEST(DatasetTest, ReadsInstructionRowsFromAJsonArray) {
  const auto data = ParseDataset(
      "d.json", R"([{"instruction": "i", "input": "", "output": "o"}, {"instruction": "j", "output": "p"}])", {});
  QST_ASSERT_OK(data);
  EXPECT_EQ(data->kind, DataKind::kInstruction);
  EXPECT_EQ(data->examples[1].instruction, "j");
  EXPECT_EQ(data->examples[1].input, "");
  EXPECT_EQ(data->examples[1].output, "p");
}

TEST(DatasetTest, ReadsPromptAndCompletion) {
  const auto data = ParseDataset("d.json", R"({"prompt": "p", "completion": "c"})", {});
  QST_ASSERT_OK(data);
  EXPECT_EQ(data->kind, DataKind::kCompletion);
  EXPECT_EQ(data->examples[0].instruction, "p");
  EXPECT_EQ(data->examples[0].output, "c");
}

TEST(DatasetTest, ReadsMessagesInBothUsualForms) {
  const auto data =
      ParseDataset("d.jsonl",
                   R"({"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]}
{"messages": [{"from": "human", "value": "u"}, {"from": "gpt", "value": "a"}]})",
                   {});
  QST_ASSERT_OK(data);
  EXPECT_EQ(data->kind, DataKind::kChat);
  for (const Example& example : data->examples) {
    ASSERT_EQ(example.messages.size(), 2);
    EXPECT_EQ(example.messages[0].role, "user");
    EXPECT_EQ(example.messages[1].role, "assistant");
    EXPECT_EQ(example.messages[1].content, "a");
  }
}

TEST(DatasetTest, TsvTakesQuotesAsTheyStand) {
  const auto data = ParseDataset("d.tsv", "sentence\tlabel\n\"quoted\ttrue\r\nplain \t0\n", {});
  QST_ASSERT_OK(data);
  EXPECT_EQ(data->examples[0].text, "\"quoted");
  EXPECT_EQ(data->examples[0].label, "true");
  EXPECT_EQ(data->examples[1].text, "plain ");
}

TEST(DatasetTest, CsvFollowsRfc4180) {
  const auto data = ParseDataset("d.csv", "text,label\r\n\"a, \"\"b\"\"\nc\",1\r\n,2\r\nlast,3", {});
  QST_ASSERT_OK(data);
  ASSERT_EQ(data->examples.size(), 3);
  EXPECT_EQ(data->examples[0].text, "a, \"b\"\nc");
  EXPECT_EQ(data->examples[1].text, "");
  EXPECT_EQ(data->examples[1].line, 4) << "the first row takes two lines";
  EXPECT_EQ(data->examples[2].label, "3");
}

TEST(DatasetTest, FindsPairsUnderTheirUsualNames) {
  const struct {
    const char* header;
    const char* row;
  } kCases[] = {{"index\tsentence1\tsentence2\tgold_label", "0\tA\tB\tL"},
                {"Quality\t#1 ID\t#2 ID\t#1 String\t#2 String", "L\t1\t2\tA\tB"},
                {"index\tquestion\tsentence\tlabel", "0\tA\tB\tL"},
                {"id\tquestion1\tquestion2\tis_duplicate", "0\tA\tB\tL"}};
  for (const auto& test : kCases) {
    const auto data = ParseDataset("d.tsv", absl::StrCat(test.header, "\n", test.row, "\n"), {});
    QST_ASSERT_OK(data);
    EXPECT_EQ(data->examples[0].text, "A") << test.header;
    EXPECT_EQ(data->examples[0].text_pair, "B") << test.header;
    EXPECT_EQ(data->examples[0].label, "L") << test.header;
  }
  const auto single = ParseDataset("d.tsv", "sentence\tlabel\nA\tL\n", {});
  QST_ASSERT_OK(single);
  EXPECT_FALSE(single->examples[0].text_pair.has_value());
}

TEST(DatasetTest, NamedColumnsAndKindWinOverUsualOnes) {
  DatasetOptions options;
  options.columns.text = "body";
  options.columns.label = "topic";
  const std::string row = R"({"text": "no", "label": "no", "body": "yes", "topic": "t"})";
  const auto data = ParseDataset("d.jsonl", row, options);
  QST_ASSERT_OK(data);
  EXPECT_EQ(data->examples[0].text, "yes");
  EXPECT_EQ(data->examples[0].label, "t");
  options = DatasetOptions();
  options.kind = DataKind::kText;
  const auto text = ParseDataset("d.jsonl", row, options);
  QST_ASSERT_OK(text);
  EXPECT_EQ(text->kind, DataKind::kText);
}

TEST(DatasetTest, FormatFollowsFromContentWhereTheNameSaysNothing) {
  EXPECT_EQ(ParseDataset("d", "\xEF\xBB\xBF[{\"text\": \"a\"}]", {})->examples[0].text, "a");
  EXPECT_EQ(ParseDataset("d", "{\"text\": \"a\"}", {})->examples[0].text, "a");
  EXPECT_EQ(ParseDataset("d", "text\tlabel\na,b\tc", {})->examples[0].text, "a,b");
  EXPECT_EQ(ParseDataset("d", "text,label\na\tb,c", {})->examples[0].text, "a\tb");
  EXPECT_THAT(ParseDataset("d", "text\na\n", {}), StatusIs(kInvalid, HasSubstr("data.format")));
}

TEST(DatasetTest, NamesTheLineThatDoesNotParse) {
  EXPECT_THAT(ParseDataset("d.jsonl", "{\"text\": \"a\"}\n\n{\"text\": ", {}),
              StatusIs(kInvalid, StartsWith("d.jsonl line 3: not JSON")));
  EXPECT_THAT(ParseDataset("d.jsonl", "{\"text\": \"a\"}\n[1]", {}),
              StatusIs(kInvalid, StartsWith("d.jsonl line 2: ")));
  EXPECT_THAT(ParseDataset("d.jsonl", "{\"text\": \"\xFF\"}", {}), StatusIs(kInvalid, StartsWith("d.jsonl line 1: ")));
  EXPECT_THAT(ParseDataset("d.tsv", "text\tlabel\na\tb\na\n", {}),
              StatusIs(kInvalid, StartsWith("d.tsv line 3: 1 fields, but the header has 2")));
  EXPECT_THAT(ParseDataset("d.tsv", "text\tlabel\na\xC3\tb\n", {}),
              StatusIs(kInvalid, StartsWith("d.tsv line 2: not valid UTF-8")));
  EXPECT_THAT(ParseDataset("d.csv", "text,label\n\"a\nb,c", {}),
              StatusIs(kInvalid, StartsWith("d.csv line 2: a quoted field does not end")));
  EXPECT_THAT(ParseDataset("d.csv", "text,label\n\"a\"b,c", {}), StatusIs(kInvalid, StartsWith("d.csv line 2: ")));
  EXPECT_THAT(ParseDataset("d.csv", "text,text\na,b", {}), StatusIs(kInvalid, HasSubstr("\"text\" twice")));
  EXPECT_THAT(ParseDataset("d.json", "[{\"text\": \"a\"}, 3]", {}),
              StatusIs(kInvalid, StartsWith("d.json element 2: ")));
}

TEST(DatasetTest, NamesMissingColumnsAndThoseThatAreThere) {
  EXPECT_THAT(ParseDataset("d.jsonl", "{\"foo\": 1, \"bar\": 2}", {}),
              StatusIs(kInvalid, AllOf(HasSubstr("bar, foo"), HasSubstr("data.columns"))));
  DatasetOptions options;
  options.kind = DataKind::kClassification;
  EXPECT_THAT(ParseDataset("d.jsonl", "{\"text\": \"a\", \"extra\": 2}", options),
              StatusIs(kInvalid, AllOf(HasSubstr("label"), HasSubstr("extra, text"))));
  options.needs_label = false;
  QST_EXPECT_OK(ParseDataset("d.jsonl", "{\"text\": \"a\", \"extra\": 2}", options));
  options.columns.label = "nope";
  EXPECT_THAT(ParseDataset("d.jsonl", "{\"text\": \"a\"}", options), StatusIs(kInvalid, HasSubstr("\"nope\"")));
}

TEST(DatasetTest, NamesTheRowThatLacksAColumn) {
  EXPECT_THAT(ParseDataset("d.jsonl", "{\"text\": \"a\", \"label\": 1}\n{\"text\": \"b\"}", {}),
              StatusIs(kInvalid, "d.jsonl line 2: no \"label\""));
  EXPECT_THAT(ParseDataset("d.jsonl", "{\"text\": [1], \"label\": 1}", {}),
              StatusIs(kInvalid, "d.jsonl line 1: \"text\" is array, not text"));
  EXPECT_THAT(ParseDataset("d.jsonl", "{\"messages\": []}", {}), StatusIs(kInvalid, StartsWith("d.jsonl line 1: ")));
  EXPECT_THAT(ParseDataset("d.jsonl", "{\"messages\": [{\"role\": \"user\"}]}", {}),
              StatusIs(kInvalid, "d.jsonl line 1: \"messages\", message 1: no \"content\""));
  EXPECT_THAT(ParseDataset("d.jsonl", "{\"messages\": [7]}", {}), StatusIs(kInvalid, HasSubstr("message 1")));
}

TEST(DatasetTest, EmptyFilesAreRefused) {
  EXPECT_THAT(ParseDataset("d.jsonl", "", {}), StatusIs(kInvalid, "d.jsonl: the file is empty"));
  EXPECT_THAT(ParseDataset("d.jsonl", " \n\n", {}), StatusIs(kInvalid, "d.jsonl: the file is empty"));
  EXPECT_THAT(ParseDataset("d.tsv", "text\tlabel\n", {}), StatusIs(kInvalid, "d.tsv: no rows"));
  EXPECT_THAT(ParseDataset("d.json", "[]", {}), StatusIs(kInvalid, "d.json: no rows"));
  EXPECT_THAT(ReadDataset("/nonexistent/d.jsonl", {}), StatusIs(absl::StatusCode::kNotFound));
}

TEST(DatasetTest, RowsWithNamesOfTheirOwnDoNotMakeAHugeTable) {
  std::string bytes;
  for (int i = 0; i < 2000; ++i) absl::StrAppend(&bytes, "{\"k", i, "\": 1}\n");
  EXPECT_THAT(ParseDataset("d.jsonl", bytes, {}), StatusIs(kInvalid, StartsWith("d.jsonl line 1001: ")));
}

TEST(DatasetTest, RowsKeepNoPlaceForColumnsThatTheyLack) {
  std::string bytes = "{";
  for (int i = 100; i < 1099; ++i) absl::StrAppend(&bytes, "\"", i, "\": 1, ");
  absl::StrAppend(&bytes, "\"text\": \"a\"}\n{\"text\": \"b\"}");
  const auto table = ParseJsonlTable("d.jsonl", bytes);
  QST_ASSERT_OK(table);
  EXPECT_EQ(table->columns.size(), 1000);
  EXPECT_EQ(table->rows[1].values.size(), 1);
  const auto data = ParseDataset("d.jsonl", bytes, {});
  QST_ASSERT_OK(data);
  EXPECT_EQ(data->examples[1].text, "b");
}

TEST(DatasetTest, LinesOfSeparatorsAreNotReadToTheEnd) {
  const std::string commas = absl::StrCat("text,label\n", std::string(1000, ','));
  EXPECT_THAT(ParseDataset("d.csv", commas, {}), StatusIs(kInvalid, HasSubstr("d.csv line 2: more than 1000 columns")));
  const std::string tabs = absl::StrCat("text\tlabel\n", std::string(1000, '\t'));
  EXPECT_THAT(ParseDataset("d.tsv", tabs, {}), StatusIs(kInvalid, HasSubstr("d.tsv line 2: more than 1000 columns")));
  EXPECT_THAT(ParseDataset("d.csv", commas.substr(0, commas.size() - 1), {}),
              StatusIs(kInvalid, HasSubstr("1000 fields, but the header has 2")));
}

TEST(DatasetTest, DeeplyNestedJsonIsNoProblem) {
  const std::string deep = absl::StrCat("{\"text\": ", std::string(200000, '['), std::string(200000, ']'), "}");
  EXPECT_THAT(ParseDataset("d.jsonl", deep, {}), StatusIs(kInvalid, StartsWith("d.jsonl line 1: ")));
}

TEST(DatasetTest, ReadsPlainTextLineByLine) {
  const auto data = ParseDataset("d.txt", "\xEF\xBB\xBFone, two\r\n\n  \n{\"text\": 1}\n", {});
  QST_ASSERT_OK(data);
  EXPECT_EQ(data->kind, DataKind::kText);
  EXPECT_EQ(data->format, DataFormat::kText);
  ASSERT_EQ(data->examples.size(), 2u);
  EXPECT_EQ(data->examples[0].text, "one, two");
  EXPECT_EQ(data->examples[1].text, "{\"text\": 1}");
  EXPECT_EQ(data->examples[1].line, 4);
  EXPECT_THAT(ParseDataset("d.txt", "a\n\xff\n", {}), StatusIs(kInvalid, HasSubstr("d.txt line 2: not valid UTF-8")));
  DatasetOptions options;
  options.format = DataFormat::kText;
  QST_EXPECT_OK(ParseDataset("d.csv", "a,b\n", options));
}

TEST(DatasetTest, ColumnsOfAFileWithoutHeaderAreNamedByNumber) {
  const std::string bytes = "\"What, then?\",0,4,0,6,B\r\nWhy?,1,2,3,4,A\r\n";
  EXPECT_THAT(ParseDataset("d.csv", bytes, {}),
              StatusIs(kInvalid, AllOf(HasSubstr("d.csv line 1: the header has \"0\" twice"),
                                       HasSubstr("if the file has no header line"))));
  EXPECT_THAT(ParseDataset("d.csv", "Why?,1,2\nWhen?,3,4\n", {}),
              StatusIs(kInvalid, AllOf(HasSubstr("columns: Why?, 1, 2"), HasSubstr("if the file has no header line"))));
  DatasetOptions options;
  options.columns.text = "1";
  options.columns.label = "6";
  const auto data = ParseDataset("d.csv", bytes, options);
  QST_ASSERT_OK(data);
  EXPECT_EQ(data->kind, DataKind::kClassification);
  ASSERT_EQ(data->examples.size(), 2u);
  EXPECT_EQ(data->examples[0].text, "What, then?");
  EXPECT_EQ(data->examples[0].label, "B");
  EXPECT_EQ(data->examples[1].line, 2);
  options.columns.label = "7";
  EXPECT_THAT(ParseDataset("d.csv", bytes, options), StatusIs(kInvalid, HasSubstr("columns: 1, 2, 3, 4, 5, 6")));
  // A header that has the number is one.
  options.columns = {};
  options.columns.text = "2";
  const auto named = ParseDataset("d.csv", "2,1\na,b\n", options);
  QST_ASSERT_OK(named);
  EXPECT_EQ(named->examples[0].text, "a");
  const auto tabs = ParseDataset("d.tsv", "x\ty\nz\tw\n", options);
  QST_ASSERT_OK(tabs);
  EXPECT_EQ(tabs->examples[0].text, "y");
  EXPECT_THAT(ParseDataset("d.tsv", "x\ty\nz\n", options),
              StatusIs(kInvalid, HasSubstr("line 2: 1 fields, but the first line has 2")));
}

TEST(DatasetTest, MistakesOfAJsonArrayHaveTheirLine) {
  EXPECT_THAT(ParseDataset("d.json", "[\n{\"text\": \"a\"},\n{\"text\": }\n]", {}),
              StatusIs(kInvalid, StartsWith("d.json line 3: not JSON")));
  EXPECT_THAT(ParseDataset("d.json", "[\n{\"text\": \"a\"}\n", {}), StatusIs(kInvalid, StartsWith("d.json line 3: ")));
}

TEST(DatasetTest, NumbersWithFractionsAreThoseOfARegression) {
  const auto data = ParseDataset("d.tsv", "sentence1\tsentence2\tscore\na\tb\t3.8\nc\td\t5\n", {});
  QST_ASSERT_OK(data);
  EXPECT_EQ(data->kind, DataKind::kRegression);
  EXPECT_EQ(data->examples[0].label, "3.8");
  EXPECT_EQ(ParseDataset("d.tsv", "text\tscore\na\t3\nb\t5\n", {})->kind, DataKind::kClassification);
  EXPECT_EQ(ParseDataset("d.tsv", "text\tlabel\na\t3.5\nb\tgood\n", {})->kind, DataKind::kClassification);
  DatasetOptions options;
  options.kind = DataKind::kRegression;
  EXPECT_EQ(ParseDataset("d.tsv", "text\tscore\na\t3\nb\t5\n", options)->kind, DataKind::kRegression);
  for (const char* bad : {"good", "", "nan", "1e99", "-inf"}) {
    EXPECT_THAT(ParseDataset("d.tsv", absl::StrCat("text\tscore\na\t3\nb\t", bad, "\n"), options),
                StatusIs(kInvalid, HasSubstr("d.tsv line 3: \"score\" is \"")))
        << bad;
  }
}

TEST(DatasetTest, MessagesOfToolsAndInPartsAreRead) {
  const auto data = ParseDataset(
      "d.jsonl",
      R"({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},)"
      R"({"role": "assistant", "content": null, "tool_calls": [{"function": {"name": "f", "arguments": "{\"x\": 1}"}},)"
      R"({"function": {"name": "g", "arguments": {"y": 2}}}]}, {"role": "tool", "content": "3"}]})",
      {});
  QST_ASSERT_OK(data);
  const std::vector<ChatMessage>& messages = data->examples[0].messages;
  ASSERT_EQ(messages.size(), 3u);
  EXPECT_EQ(messages[0].content, "ab");
  EXPECT_EQ(messages[1].content,
            "{\"name\": \"f\", \"arguments\": {\"x\": 1}}\n{\"name\": \"g\", \"arguments\": {\"y\":2}}");
  EXPECT_EQ(messages[2].role, "tool");
  EXPECT_THAT(ParseDataset("d.jsonl", R"({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]})", {}),
              StatusIs(kInvalid, HasSubstr("part of type \"image_url\"")));
  const std::string deep = absl::StrCat(std::string(100000, '['), std::string(100000, ']'));
  EXPECT_THAT(
      ParseDataset("d.jsonl",
                   absl::StrCat(R"({"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f",)",
                                R"( "arguments": )", deep, "}}]}]}"),
                   {}),
      StatusIs(kInvalid, HasSubstr("nested deeper")));
}

TEST(DatasetTest, RolesOfShareGptGetTheirUsualNames) {
  const auto data = ParseDataset(
      "d.jsonl",
      R"({"conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "q"},)"
      R"({"from": "function_call", "value": "c"}, {"from": "observation", "value": "o"}, {"from": "gpt", "value": "a"}]})",
      {});
  QST_ASSERT_OK(data);
  std::vector<std::string> roles;
  for (const ChatMessage& message : data->examples[0].messages) roles.push_back(message.role);
  EXPECT_THAT(roles, ElementsAre("system", "user", "function_call", "tool", "assistant"));
}

TEST(DataFormatTest, NamesAreTheDocumentedOnes) {
  EXPECT_EQ(*ParseDataFormat("auto"), DataFormat::kAuto);
  EXPECT_EQ(*ParseDataFormat("csv"), DataFormat::kCsv);
  EXPECT_THAT(ParseDataFormat("xml"), StatusIs(kInvalid, HasSubstr("jsonl")));
}

TEST(LabelSetTest, CollectsNumbersByValueBeforeText) {
  const auto data = ParseDataset("d.tsv", "text\tlabel\na\t10\na\tb\na\t9\na\ta\na\t-1\na\t9\na\tnan\n", {});
  QST_ASSERT_OK(data);
  const auto labels = LabelSet::Collect(*data);
  QST_ASSERT_OK(labels);
  EXPECT_THAT(labels->labels(), ElementsAre("-1", "9", "10", "a", "b", "nan"));
  EXPECT_EQ(labels->Find("10"), 2);
  EXPECT_EQ(labels->Find("c"), std::nullopt);
}

TEST(LabelSetTest, NamesTheRowWhoseLabelIsOutsideTheSet) {
  const auto data = ParseDataset("d.tsv", "text\tlabel\na\tx\na\tz\n", {});
  QST_ASSERT_OK(data);
  const auto labels = LabelSet::FromList({"x", "y"});
  QST_ASSERT_OK(labels);
  EXPECT_THAT(labels->Check(*data), StatusIs(kInvalid, "d.tsv line 3: label \"z\" is not one of: x, y"));
  EXPECT_THAT(LabelSet::FromList({}), StatusIs(kInvalid));
  EXPECT_THAT(LabelSet::FromList({"x", "x"}), StatusIs(kInvalid, HasSubstr("\"x\" twice")));
}

struct SharedFile {
  const char* path;
  DataKind kind;
  size_t rows;
};

class SharedDatasetTest : public testing::TestWithParam<SharedFile> {};

TEST_P(SharedDatasetTest, IsReadWithAllRows) {
  const auto path = SharedDataPath(GetParam().path);
  if (!path.has_value()) GTEST_SKIP() << "no shared data: " << GetParam().path;
  const auto data = ReadDataset(*path, {});
  QST_ASSERT_OK(data);
  EXPECT_EQ(data->kind, GetParam().kind);
  EXPECT_EQ(data->examples.size(), GetParam().rows);
}

INSTANTIATE_TEST_SUITE_P(Shared, SharedDatasetTest,
                         testing::Values(SharedFile{"glue/sst2/dev.tsv", DataKind::kClassification, 872},
                                         SharedFile{"glue/sst2/train.tsv", DataKind::kClassification, 67349},
                                         SharedFile{"glue/cola/dev.tsv", DataKind::kClassification, 1043},
                                         SharedFile{"glue/cola/train.tsv", DataKind::kClassification, 8551},
                                         SharedFile{"glue/mrpc/dev.tsv", DataKind::kClassification, 408},
                                         SharedFile{"glue/mrpc/train.tsv", DataKind::kClassification, 3668},
                                         SharedFile{"glue/qnli/dev.tsv", DataKind::kClassification, 5463},
                                         SharedFile{"glue/qnli/train.tsv", DataKind::kClassification, 9999},
                                         SharedFile{"glue/mnli/dev.tsv", DataKind::kClassification, 1000},
                                         SharedFile{"glue/mnli/train.tsv", DataKind::kClassification, 8999},
                                         SharedFile{"glue/qqp/dev.tsv", DataKind::kClassification, 1000},
                                         SharedFile{"glue/qqp/train.tsv", DataKind::kClassification, 8999},
                                         SharedFile{"instruct/alpaca_5k.jsonl", DataKind::kInstruction, 5000},
                                         SharedFile{"chat/oasst1_threads.jsonl", DataKind::kChat, 801},
                                         SharedFile{"chat/oasst1_trees_en.jsonl", DataKind::kChat, 541},
                                         SharedFile{"chat/glaive_toolcall_sharegpt.jsonl", DataKind::kChat, 300}));

// Questions without a header line: read by number, and without that refused with advice.
TEST(SharedDataTest, MmluIsReadByColumnNumbers) {
  const std::pair<const char*, size_t> files[] = {
      {"dev/abstract_algebra", 5},
      {"dev/anatomy", 5},
      {"dev/astronomy", 5},
      {"dev/college_computer_science", 5},
      {"dev/computer_security", 5},
      {"dev/high_school_us_history", 5},
      {"dev/international_law", 5},
      {"dev/machine_learning", 5},
      {"dev/philosophy", 5},
      {"dev/world_religions", 5},
      {"test/abstract_algebra", 100},
      {"test/anatomy", 135},
      {"test/astronomy", 152},
      {"test/college_computer_science", 100},
      {"test/computer_security", 100},
      {"test/high_school_us_history", 204},
      {"test/international_law", 121},
      {"test/machine_learning", 112},
      {"test/philosophy", 311},
      {"test/world_religions", 171},
  };
  DatasetOptions options;
  options.columns.text = "1";
  options.columns.label = "6";
  for (const auto& [name, rows] : files) {
    const std::string split(name, std::string(name).find('/'));
    const auto path = SharedDataPath(absl::StrCat("mmlu/", name, "_", split, ".csv"));
    if (!path.has_value()) GTEST_SKIP() << "no shared data: mmlu";
    const auto data = ReadDataset(*path, options);
    QST_ASSERT_OK(data);
    EXPECT_EQ(data->examples.size(), rows) << name;
    EXPECT_THAT(LabelSet::Collect(*data)->labels(), testing::IsSubsetOf({"A", "B", "C", "D"})) << name;
    EXPECT_THAT(ReadDataset(*path, {}), StatusIs(kInvalid, HasSubstr("if the file has no header line"))) << name;
  }
}

// Lists of questions, whose columns have names of their own.
TEST(SharedDataTest, MtBenchNeedsItsColumnsNamed) {
  for (const char* name : {"mt_bench_question", "mt_bench_reference_gpt-4"}) {
    const auto path = SharedDataPath(absl::StrCat("instruct/", name, ".jsonl"));
    if (!path.has_value()) GTEST_SKIP() << "no shared data: instruct";
    EXPECT_THAT(ReadDataset(*path, {}), StatusIs(kInvalid, HasSubstr("name them in data.columns"))) << name;
  }
}

}  // namespace
}  // namespace qst
