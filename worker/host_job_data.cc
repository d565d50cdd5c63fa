#include "worker/host_job_data.h"

#include <memory>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "proto/support/status_macros.h"
#include "worker/host_data_config.h"
#include "worker/text/dataset.h"
#include "worker/text/prompt_template.h"
#include "worker/text/tokenizer.h"

namespace qst {
namespace {

// Labels that a summary line lists.
constexpr std::size_t kMaxLabelsListed = 12;

void Limit(std::uint64_t max_examples, Dataset* dataset) {
  if (max_examples > 0 && dataset->examples.size() > max_examples) dataset->examples.resize(max_examples);
}

// What a prediction is shown beside.
std::vector<std::string> TextsOf(const Dataset& dataset) {
  std::vector<std::string> texts;
  for (const Example& example : dataset.examples) {
    texts.push_back(example.text_pair.has_value() ? absl::StrCat(example.text, "\n", *example.text_pair)
                                                  : example.text);
  }
  return texts;
}

}  // namespace

std::string DescribeEncoding(const std::string& what, const EncodingStats& stats, std::int64_t max_length,
                             std::int64_t rows_in_file) {
  std::string line = absl::StrCat(what, ": ", stats.examples, " examples");
  if (rows_in_file != stats.rows) absl::StrAppend(&line, " (the first ", stats.rows, " of ", rows_in_file, " rows)");
  absl::StrAppend(&line, ", ", stats.tokens, " tokens (median ", stats.tokens_p50, ", 95 % at most ", stats.tokens_p95,
                  ", longest ", stats.tokens_max, ")");
  if (stats.target_tokens > 0 && stats.label_counts.empty()) {
    absl::StrAppend(&line, ", ", stats.target_tokens, " bear loss");
  }
  if (stats.truncated > 0)
    absl::StrAppend(&line, "; ", stats.truncated, " longer than ", max_length, " tokens were cut");
  if (stats.dropped > 0) {
    absl::StrAppend(&line, "; ", stats.dropped, " left out: nothing to learn within ", max_length, " tokens");
  }
  if (!stats.label_counts.empty()) {
    std::vector<std::string> counts;
    for (const auto& [label, count] : stats.label_counts) {
      if (counts.size() == kMaxLabelsListed) {
        counts.push_back(absl::StrCat("and ", stats.label_counts.size() - kMaxLabelsListed, " more labels"));
        break;
      }
      counts.push_back(absl::StrCat(label, " ", count));
    }
    absl::StrAppend(&line, "; labels: ", absl::StrJoin(counts, ", "));
  }
  return line;
}

absl::StatusOr<JobData> LoadJobData(const v1::TrainWork& work, const std::string& model_folder,
                                    const std::function<void(const std::string& line)>& say) {
  const v1::JobSpec& spec = work.spec();
  const v1::DataConfig& data = spec.data();
  const v1::TaskType task = spec.task().type();
  const std::int64_t max_length = data.max_length();
  QST_ASSIGN_OR_RETURN(const std::unique_ptr<Tokenizer> tokenizer, Tokenizer::FromModelFolder(model_folder));

  std::optional<LabelSet> labels;
  LanguageModelEncoding encoding;
  encoding.max_length = max_length;
  encoding.train_on_prompt = data.train_on_prompt();
  const auto load = [&](const std::string& what, const std::string& path,
                        std::uint64_t max_examples) -> absl::StatusOr<ExampleSet> {
    QST_ASSIGN_OR_RETURN(Dataset dataset, ReadDatasetFor(task, data, path));
    const std::int64_t rows_in_file = static_cast<std::int64_t>(dataset.examples.size());
    if (task == v1::TASK_TYPE_CLASSIFICATION && !labels.has_value()) {
      // From the whole training file, so that the class ids do not depend on how much of it is used.
      const auto& given = spec.task().labels();
      absl::StatusOr<LabelSet> set = given.empty()
                                         ? LabelSet::Collect(dataset)
                                         : LabelSet::FromList(std::vector<std::string>(given.begin(), given.end()));
      QST_RETURN_IF_ERROR(Annotate(set.status(), "task.labels"));
      labels = *std::move(set);
    }
    Limit(max_examples, &dataset);
    EncodedDataset encoded;
    std::vector<std::string> texts;
    if (task != v1::TASK_TYPE_CAUSAL_LM) {
      QST_ASSIGN_OR_RETURN(
          encoded, EncodeClassification(dataset, *tokenizer, labels.has_value() ? &*labels : nullptr, max_length));
      texts = TextsOf(dataset);
    } else {
      QST_ASSIGN_OR_RETURN(encoding.format, PromptFormatFor(data, *tokenizer, dataset.kind));
      QST_ASSIGN_OR_RETURN(encoded, EncodeLanguageModel(dataset, *tokenizer, encoding));
    }
    std::string line = DescribeEncoding(what, encoded.stats, max_length, rows_in_file);
    if (task == v1::TASK_TYPE_CAUSAL_LM && dataset.kind != DataKind::kText) {
      absl::StrAppend(&line, "; template ", DescribePromptFormat(encoding.format));
    }
    say(line);
    return ExampleSet(task, std::move(encoded.examples), std::move(texts));
  };
  QST_ASSIGN_OR_RETURN(ExampleSet train, load("training set", work.train_path(), data.max_train_examples()));
  ExampleSet eval(task, {});
  if (!work.eval_path().empty()) {
    QST_ASSIGN_OR_RETURN(eval, load("evaluation set", work.eval_path(), data.max_eval_examples()));
  }
  JobData out{labels.has_value() ? labels->labels() : std::vector<std::string>(), std::move(train), std::move(eval)};
  return out;
}

}  // namespace qst
