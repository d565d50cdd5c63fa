#include "worker/host_describe.h"

#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <string>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/support/status_matchers.h"
#include "worker/text/tokenizer_files.h"

namespace qst {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr char kChatTemplate[] = "{{ bos_token }}<|im_start|><|im_end|>";

class HostDescribeTest : public testing::Test {
 protected:
  HostDescribeTest() {
    folder_ = absl::StrCat(testing::TempDir(), "/describe-", getpid());
    std::filesystem::create_directories(folder_ + "/model");
    // One token a character, and a space before each text.
    TokenizerDefinition definition;
    definition.kind = TokenizerDefinition::Kind::kSentencePieceBpe;
    definition.tokens = {"<s>", "</s>", "<|im_start|>", "<|im_end|>", "\xE2\x96\x81", "\n"};
    for (const char c : std::string("abcdefghijklmnopqrstuvwxyz0123456789")) definition.tokens.emplace_back(1, c);
    definition.token_types.assign(definition.tokens.size(), TokenizerDefinition::TokenType::kNormal);
    for (int i = 0; i < 4; ++i) definition.token_types[i] = TokenizerDefinition::TokenType::kControl;
    definition.scores.assign(definition.tokens.size(), 0);
    definition.bos_id = 0;
    definition.eos_id = 1;
    definition.add_bos = true;
    definition.add_space_prefix = false;
    definition.chat_template = kChatTemplate;
    const auto files = ToTokenizerFiles(definition);
    QST_EXPECT_OK(files);
    QST_EXPECT_OK(WriteTokenizerFiles(*files, folder_ + "/model"));
  }
  ~HostDescribeTest() override { std::filesystem::remove_all(folder_); }

  v1::DescribeDatasetTask Task(const std::string& file_name, const std::string& content, bool with_model = true) {
    const std::string path = folder_ + "/" + file_name;
    std::ofstream(path, std::ios::binary) << content;
    v1::DescribeDatasetTask task;
    task.set_dataset_path(path);
    task.set_file_name(file_name);
    if (with_model) task.set_model_path(folder_ + "/model");
    task.mutable_request()->mutable_data()->set_max_length(512);
    task.mutable_request()->mutable_data()->set_template_("auto");
    return task;
  }
  absl::StatusOr<v1::DescribeDatasetResponse> Describe(const v1::DescribeDatasetTask& task) {
    return DescribeDataset(task, is_cancelled_);
  }

  std::atomic<bool> is_cancelled_{false};
  std::string folder_;
};

TEST_F(HostDescribeTest, WithoutAModelRowsColumnsAndLabelsAreCounted) {
  const auto response = Describe(Task("d.tsv", "sentence\tlabel\na\t1\nb\t0\nc\t1\n", /*with_model=*/false));
  QST_ASSERT_OK(response);
  EXPECT_EQ(response->kind(), "classification");
  EXPECT_EQ(response->format(), "tsv");
  EXPECT_THAT(response->columns(), ElementsAre("sentence", "label"));
  EXPECT_EQ(response->num_examples(), 3u);
  ASSERT_EQ(response->labels_size(), 2);
  EXPECT_EQ(response->labels(0).label(), "1");
  EXPECT_EQ(response->labels(0).count(), 2u);
  EXPECT_FALSE(response->has_tokens());
  EXPECT_EQ(response->template_(), "");
}

TEST_F(HostDescribeTest, TokensAreCountedBeforeTheyAreCut) {
  std::string rows;
  for (int i = 1; i <= 100; ++i)
    absl::StrAppend(&rows, "{\"prompt\": \"", std::string(i, 'p'), "\", \"completion\": \"cc\"}\n");
  v1::DescribeDatasetTask task = Task("d.jsonl", rows);
  task.mutable_request()->mutable_data()->set_max_length(53);
  const auto response = Describe(task);
  QST_ASSERT_OK(response);
  const auto& tokens = response->tokens();
  // BOS, prompt, completion, EOS.
  EXPECT_EQ(tokens.total(), 100u * 101 / 2 + 100 * 4);
  EXPECT_EQ(tokens.target(), 300u);
  EXPECT_EQ(tokens.shortest(), 5u);
  EXPECT_EQ(tokens.p50(), 54u);
  EXPECT_EQ(tokens.p90(), 94u);
  EXPECT_EQ(tokens.p95(), 99u);
  EXPECT_EQ(tokens.p99(), 103u);
  EXPECT_EQ(tokens.longest(), 104u);
  EXPECT_EQ(tokens.truncated(), 51u);
  EXPECT_EQ(tokens.without_target(), 49u) << "BOS and 52 or more of the prompt";
  EXPECT_EQ(response->template_(), "plain (completion data are rendered already)");
}

TEST_F(HostDescribeTest, RenderedExamplesShowSpecialTokensAndWhatBearsLoss) {
  v1::DescribeDatasetTask task =
      Task("d.jsonl", R"({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "no"}]})"
                      "\n\n"
                      R"({"messages": [{"role": "user", "content": "q r"}, {"role": "assistant", "content": "yes"},)"
                      R"({"role": "user", "content": "s"}, {"role": "assistant", "content": "a"}]})");
  task.mutable_request()->set_first_example(1);
  task.mutable_request()->set_render(5);
  const auto response = Describe(task);
  QST_ASSERT_OK(response);
  EXPECT_EQ(response->template_(), "chatml (recognised in the model's chat template)");
  ASSERT_EQ(response->examples_size(), 1);
  const auto& example = response->examples(0);
  EXPECT_EQ(example.line(), 3u);
  std::string shown;
  int num_tokens = 0;
  for (const auto& segment : example.segments()) {
    absl::StrAppend(&shown, segment.bears_loss() ? "[" : "", segment.text(), segment.bears_loss() ? "]" : "");
    num_tokens += segment.token_ids_size();
  }
  EXPECT_EQ(
      shown,
      "<s><|im_start|>user\nq r<|im_end|>\n<|im_start|>assistant\n[yes<|im_end|>]\n<|im_start|>user\ns<|im_end|>\n"
      "<|im_start|>assistant\n[a<|im_end|>]\n");
  EXPECT_EQ(example.segments(1).token_ids_size(), 4);
  EXPECT_EQ(num_tokens, static_cast<int>(response->tokens().longest()));
  task.mutable_request()->mutable_data()->set_max_length(6);
  const auto cut = Describe(task);
  QST_ASSERT_OK(cut);
  EXPECT_TRUE(cut->examples(0).is_truncated());
  ASSERT_EQ(cut->examples(0).segments_size(), 1);
  EXPECT_EQ(cut->examples(0).segments(0).text(), "<s><|im_start|>user");
}

TEST_F(HostDescribeTest, LabelsAndNumbersComeWithTheirExamples) {
  v1::DescribeDatasetTask task = Task("d.tsv", "text\tscore\nab\t2.5\ncd\t1\n");
  task.mutable_request()->set_render(1);
  auto response = Describe(task);
  QST_ASSERT_OK(response);
  EXPECT_EQ(response->kind(), "regression");
  EXPECT_EQ(response->labels_size(), 0);
  EXPECT_EQ(response->examples(0).label(), "2.5");
  EXPECT_EQ(response->examples(0).segments(0).text(), "<s>ab");
  EXPECT_EQ(response->tokens().target(), 0u);
  EXPECT_EQ(response->tokens().without_target(), 0u);
  task.mutable_request()->mutable_task()->set_type(v1::TASK_TYPE_CAUSAL_LM);
  response = Describe(task);
  QST_ASSERT_OK(response);
  EXPECT_EQ(response->kind(), "text");
  task.mutable_request()->mutable_task()->set_type(v1::TASK_TYPE_CLASSIFICATION);
  task.mutable_request()->mutable_task()->add_labels("1");
  EXPECT_THAT(Describe(task), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("line 2: label \"2.5\"")));
}

TEST_F(HostDescribeTest, CustomTemplatesAreRendered) {
  v1::DescribeDatasetTask task = Task("d.jsonl", R"({"instruction": "do", "output": "done"})");
  task.mutable_request()->set_render(1);
  auto& custom = *task.mutable_request()->mutable_data()->mutable_custom_template();
  custom.set_user_prefix("u ");
  custom.set_assistant_prefix("\n a ");
  custom.set_assistant_suffix("e");
  custom.set_eos_after_answer(false);
  const auto response = Describe(task);
  QST_ASSERT_OK(response);
  ASSERT_EQ(response->examples(0).segments_size(), 2);
  EXPECT_EQ(response->examples(0).segments(0).text(), "<s>u do\n a");
  EXPECT_EQ(response->examples(0).segments(1).text(), " donee");
  EXPECT_EQ(response->template_(), "custom (as given)");
}

TEST_F(HostDescribeTest, MistakesAreToldWithTheirLineAndCancellingEndsIt) {
  EXPECT_THAT(Describe(Task("d.jsonl", "{\"text\": \"a\"}\n{\"text\": \n")),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("d.jsonl line 2: not JSON")));
  v1::DescribeDatasetTask task = Task("d.jsonl", "{\"text\": \"a\"}\n");
  task.mutable_request()->mutable_data()->set_template_("alpca");
  QST_EXPECT_OK(Describe(Task("d.jsonl", "{\"text\": \"a\"}\n")));
  EXPECT_THAT(Describe(task), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("data.template")));
  is_cancelled_ = true;
  EXPECT_THAT(Describe(Task("d.jsonl", "{\"text\": \"a\"}\n")), StatusIs(absl::StatusCode::kCancelled));
}

}  // namespace
}  // namespace qst
