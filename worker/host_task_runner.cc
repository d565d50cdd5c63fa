#include "worker/host_task_runner.h"

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/dtype.h"
#include "proto/support/status_macros.h"
#include "worker/checkpoint/export_model.h"
#include "worker/host_describe.h"
#include "worker/text/tokenizer.h"
#include "worker/worker_memory.h"

namespace qst {
namespace {

// The coordinator takes messages up to 4 MiB.
constexpr std::size_t kMaxAnswerBytes = 3 << 20;

absl::StatusOr<v1::TaskReport> Tokenize(const v1::TokenizeTask& task) {
  QST_ASSIGN_OR_RETURN(const std::unique_ptr<Tokenizer> tokenizer, Tokenizer::FromModelFolder(task.model_path()));
  QST_ASSIGN_OR_RETURN(const std::vector<std::int32_t> ids,
                       tokenizer->Encode(task.request().text(), !task.request().no_special()));
  v1::TaskReport report;
  v1::TokenizeResponse& response = *report.mutable_tokenize();
  for (const std::int32_t id : ids) {
    v1::TokenizeResponse::Token& token = *response.add_tokens();
    token.set_id(id);
    token.set_token(tokenizer->IdToToken(id).value_or(""));
  }
  response.set_decoded(tokenizer->Decode(ids, /*skip_special=*/true));
  return report;
}

absl::StatusOr<v1::TaskReport> Describe(const v1::DescribeDatasetTask& task, const TaskContext& context) {
  v1::TaskReport report;
  QST_ASSIGN_OR_RETURN(*report.mutable_describe_dataset(), DescribeDataset(task, context.is_cancelled));
  // The data set's rows may have been many.
  TrimMalloc();
  return report;
}

absl::StatusOr<DType> DtypeOf(const std::string& name) {
  if (name.empty() || name == "f32") return DType::kF32;
  if (name == "bf16") return DType::kBF16;
  if (name == "f16") return DType::kF16;
  return absl::InvalidArgumentError(absl::StrCat("dtype: '", name, "' is not one of f32, bf16, f16"));
}

absl::StatusOr<v1::TaskReport> Export(const v1::ExportModelTask& task, const TaskContext& context) {
  ExportOptions options;
  options.model = task.model_path();
  options.destination = task.request().destination_path();
  options.dequantize = task.request().dequantize();
  QST_ASSIGN_OR_RETURN(options.dtype, DtypeOf(task.request().dtype()));
  QST_RETURN_IF_ERROR(
      ExportModel(options, [&context](std::int64_t done_bytes, std::int64_t total_bytes, absl::string_view what) {
        v1::TaskProgress progress;
        progress.set_bytes_done(static_cast<std::uint64_t>(done_bytes));
        progress.set_bytes_total(static_cast<std::uint64_t>(total_bytes));
        progress.set_status_message(std::string(what));
        context.on_progress(progress);
        return !context.is_cancelled;
      }));
  v1::TaskReport report;
  report.mutable_export_model()->set_path(options.destination);
  return report;
}

absl::StatusOr<v1::TaskReport> RunTask(const v1::TaskCommand& command, const TaskContext& context) {
  switch (command.kind_case()) {
    case v1::TaskCommand::kTokenize:
      return Tokenize(command.tokenize());
    case v1::TaskCommand::kDescribeDataset:
      return Describe(command.describe_dataset(), context);
    case v1::TaskCommand::kExportModel:
      return Export(command.export_model(), context);
    default:
      return absl::UnimplementedError("this worker does not know what is asked; is it of another version?");
  }
}

}  // namespace

TaskRunner MakeTaskRunner() {
  return [](const v1::TaskCommand& command, const TaskContext& context) -> absl::StatusOr<v1::TaskReport> {
    QST_ASSIGN_OR_RETURN(v1::TaskReport report, RunTask(command, context));
    if (report.ByteSizeLong() > kMaxAnswerBytes) {
      return absl::ResourceExhaustedError(absl::StrCat("the answer has ", report.ByteSizeLong(), " bytes, more than ",
                                                       kMaxAnswerBytes, "; ask for less"));
    }
    return report;
  };
}

}  // namespace qst
