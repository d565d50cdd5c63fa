#include "worker/host_data_config.h"

#include "proto/support/status_macros.h"

namespace qst {
namespace {

DataFormat FormatOf(v1::DataFormat format) {
  switch (format) {
    case v1::DATA_FORMAT_JSONL:
      return DataFormat::kJsonl;
    case v1::DATA_FORMAT_JSON:
      return DataFormat::kJson;
    case v1::DATA_FORMAT_CSV:
      return DataFormat::kCsv;
    case v1::DATA_FORMAT_TSV:
      return DataFormat::kTsv;
    case v1::DATA_FORMAT_TEXT:
      return DataFormat::kText;
    default:
      return DataFormat::kAuto;
  }
}

DataColumns ColumnsOf(const v1::ColumnMapping& columns) {
  DataColumns out;
  out.text = columns.text();
  out.text_pair = columns.text_pair();
  out.label = columns.label();
  out.instruction = columns.instruction();
  out.input = columns.input();
  out.output = columns.output();
  out.prompt = columns.prompt();
  out.completion = columns.completion();
  out.messages = columns.messages();
  return out;
}

}  // namespace

absl::StatusOr<Dataset> ReadDatasetFor(v1::TaskType task, const v1::DataConfig& data, const std::string& path) {
  DatasetOptions options;
  options.format = FormatOf(data.format());
  options.columns = ColumnsOf(data.columns());
  if (task == v1::TASK_TYPE_CLASSIFICATION) options.kind = DataKind::kClassification;
  if (task == v1::TASK_TYPE_REGRESSION) options.kind = DataKind::kRegression;
  QST_ASSIGN_OR_RETURN(Dataset dataset, ReadDataset(path, options));
  const bool is_labelled = dataset.kind == DataKind::kClassification || dataset.kind == DataKind::kRegression;
  if (task != v1::TASK_TYPE_CAUSAL_LM || !is_labelled) return dataset;
  // Labelled texts, to be learned as plain text.
  options.kind = DataKind::kText;
  return ReadDataset(path, options);
}

absl::StatusOr<PromptFormat> PromptFormatFor(const v1::DataConfig& data, const Tokenizer& tokenizer, DataKind kind) {
  const v1::CustomTemplate& custom = data.custom_template();
  const TurnTexts texts = {custom.system_prefix(),
                           custom.system_suffix(),
                           custom.user_prefix(),
                           custom.user_suffix(),
                           custom.assistant_prefix(),
                           custom.assistant_suffix(),
                           !custom.has_eos_after_answer() || custom.eos_after_answer()};
  absl::StatusOr<PromptFormat> format =
      ChoosePromptFormat(data.template_(), tokenizer.chat_template(), kind,
                         data.has_custom_template() ? &texts : nullptr, custom.default_system());
  QST_RETURN_IF_ERROR(Annotate(format.status(), "data.template"));
  return format;
}

}  // namespace qst
