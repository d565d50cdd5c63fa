#include "worker/host_task_runner.h"

#include <atomic>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/support/status_matchers.h"
#include "worker/checkpoint/import_model.h"
#include "worker/testing/tiny_model.h"

namespace qst {
namespace {

using ::testing::HasSubstr;

class HostTaskRunnerTest : public testing::Test {
 protected:
  HostTaskRunnerTest() : folder_(MakeTestFolder("tasks")) {
    const std::string source = MakeTestFolder("source");
    QST_EXPECT_OK(WriteTinyModel(MakeTinyModel(TinyLlamaConfig(), 1), source));
    ImportOptions options;
    options.source = source;
    options.destination = folder_ + "/model";
    QST_EXPECT_OK(ImportModel(options, nullptr));
  }
  absl::StatusOr<v1::TaskReport> Run(const v1::TaskCommand& command) {
    const TaskContext context{is_cancelled_,
                              [this](const v1::TaskProgress& progress) { progress_.push_back(progress); }};
    return MakeTaskRunner()(command, context);
  }

  std::string folder_;
  std::atomic<bool> is_cancelled_{false};
  std::vector<v1::TaskProgress> progress_;
};

TEST_F(HostTaskRunnerTest, TokenizesAndDecodesAgain) {
  v1::TaskCommand command;
  command.mutable_tokenize()->set_model_path(folder_ + "/model");
  command.mutable_tokenize()->mutable_request()->set_text("some text\n");
  const auto report = Run(command);
  QST_ASSERT_OK(report);
  EXPECT_EQ(report->tokenize().decoded(), "some text\n");
  const int num_tokens = report->tokenize().tokens_size();
  EXPECT_GT(num_tokens, 0);
  for (const auto& token : report->tokenize().tokens()) EXPECT_FALSE(token.token().empty());
  // Bytes that are no text, and what the tokenizer adds by itself.
  command.mutable_tokenize()->mutable_request()->set_text("\xff");
  command.mutable_tokenize()->mutable_request()->set_no_special(true);
  const auto other = Run(command);
  QST_ASSERT_OK(other);
  EXPECT_EQ(other->tokenize().decoded(), "\xEF\xBF\xBD");
  command.mutable_tokenize()->set_model_path(folder_ + "/nobody");
  EXPECT_THAT(Run(command), StatusIs(absl::StatusCode::kNotFound, HasSubstr("nobody")));
}

TEST_F(HostTaskRunnerTest, AnAnswerThatIsTooLargeIsAnError) {
  v1::TaskCommand command;
  command.mutable_tokenize()->set_model_path(folder_ + "/model");
  command.mutable_tokenize()->mutable_request()->set_text(std::string(1 << 20, '\xff'));
  EXPECT_THAT(Run(command), StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("ask for less")));
}

TEST_F(HostTaskRunnerTest, DescribesADataSet) {
  std::ofstream(folder_ + "/d.txt") << "one\ntwo\n";
  v1::TaskCommand command;
  command.mutable_describe_dataset()->set_dataset_path(folder_ + "/d.txt");
  command.mutable_describe_dataset()->set_model_path(folder_ + "/model");
  command.mutable_describe_dataset()->mutable_request()->mutable_data()->set_max_length(100);
  const auto report = Run(command);
  QST_ASSERT_OK(report);
  EXPECT_EQ(report->describe_dataset().num_examples(), 2u);
  EXPECT_EQ(report->describe_dataset().format(), "text");
  EXPECT_GT(report->describe_dataset().tokens().total(), 0u);
}

TEST_F(HostTaskRunnerTest, ExportsAModelThatImportsAgainWithProgress) {
  v1::TaskCommand command;
  command.mutable_export_model()->set_model_path(folder_ + "/model");
  command.mutable_export_model()->mutable_request()->set_destination_path(folder_ + "/out");
  command.mutable_export_model()->mutable_request()->set_dequantize(true);
  command.mutable_export_model()->mutable_request()->set_dtype("bf16");
  const auto report = Run(command);
  QST_ASSERT_OK(report);
  EXPECT_EQ(report->export_model().path(), folder_ + "/out");
  ASSERT_FALSE(progress_.empty());
  EXPECT_GT(progress_.back().bytes_total(), 0u);
  ImportOptions options;
  options.source = folder_ + "/out";
  options.destination = folder_ + "/again";
  QST_EXPECT_OK(ImportModel(options, nullptr));
  EXPECT_THAT(Run(command), StatusIs(absl::StatusCode::kAlreadyExists));

  command.mutable_export_model()->mutable_request()->set_destination_path(folder_ + "/cancelled");
  is_cancelled_ = true;
  EXPECT_THAT(Run(command), StatusIs(absl::StatusCode::kCancelled));
  for (const auto& entry : std::filesystem::directory_iterator(folder_)) {
    EXPECT_THAT(entry.path().string(), testing::Not(HasSubstr("cancelled")));
  }
  command.mutable_export_model()->mutable_request()->set_dtype("int8");
  EXPECT_THAT(Run(command), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("int8")));
}

TEST_F(HostTaskRunnerTest, WhatIsNotKnownIsRefused) {
  EXPECT_THAT(Run(v1::TaskCommand()), StatusIs(absl::StatusCode::kUnimplemented));
}

}  // namespace
}  // namespace qst
