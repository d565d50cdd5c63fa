#include "worker/host_describe.h"

#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "proto/support/status_macros.h"
#include "worker/host_data_config.h"
#include "worker/text/encoded_dataset.h"
#include "worker/text/tokenizer.h"

namespace qst {
namespace {

// More different labels are no classes.
constexpr int kMaxLabels = 1000;
// Of all examples that are rendered; further ones are left out.
constexpr std::size_t kMaxRenderedBytes = 2 << 20;

void CountLabels(const Dataset& dataset, v1::DescribeDatasetResponse* response) {
  std::map<std::string, std::uint64_t> counts;
  for (const Example& row : dataset.examples) ++counts[row.label];
  std::vector<std::pair<std::string, std::uint64_t>> sorted(counts.begin(), counts.end());
  std::stable_sort(sorted.begin(), sorted.end(), [](const auto& a, const auto& b) { return a.second > b.second; });
  for (const auto& [label, count] : sorted) {
    if (response->labels_size() == kMaxLabels) break;
    v1::DescribeDatasetResponse::LabelCount& entry = *response->add_labels();
    entry.set_label(label);
    entry.set_count(count);
  }
}

class Describer {
 public:
  Describer(const v1::DescribeDatasetTask& task, const Dataset& dataset, const Tokenizer& tokenizer)
      : request_(task.request()), dataset_(dataset), tokenizer_(tokenizer) {}

  absl::Status Run(const std::atomic<bool>& is_cancelled, v1::DescribeDatasetResponse* response) {
    const v1::DataConfig& data = request_.data();
    if (!IsLabelled()) {
      QST_ASSIGN_OR_RETURN(encoding_.format, PromptFormatFor(data, tokenizer_, dataset_.kind));
      encoding_.train_on_prompt = data.train_on_prompt();
      response->set_template_(DescribePromptFormat(encoding_.format));
    }
    const std::uint64_t first = request_.first_example();
    const std::uint64_t end = first + request_.render();
    for (std::uint64_t i = 0; i < dataset_.examples.size(); ++i) {
      if (is_cancelled) return absl::CancelledError("cancelled");
      QST_ASSIGN_OR_RETURN(const EncodedPrompt row, Encode(dataset_.examples[i]));
      Count(row);
      if (i >= first && i < end) Render(dataset_.examples[i], row, response);
    }
    std::sort(lengths_.begin(), lengths_.end());
    v1::DescribeDatasetResponse::TokenCounts& counts = *response->mutable_tokens();
    counts = counts_;
    counts.set_shortest(static_cast<std::uint64_t>(lengths_.front()));
    counts.set_p50(static_cast<std::uint64_t>(Percentile(lengths_, 50)));
    counts.set_p90(static_cast<std::uint64_t>(Percentile(lengths_, 90)));
    counts.set_p95(static_cast<std::uint64_t>(Percentile(lengths_, 95)));
    counts.set_p99(static_cast<std::uint64_t>(Percentile(lengths_, 99)));
    counts.set_longest(static_cast<std::uint64_t>(lengths_.back()));
    return absl::OkStatus();
  }

 private:
  bool IsLabelled() const {
    return dataset_.kind == DataKind::kClassification || dataset_.kind == DataKind::kRegression;
  }
  std::size_t max_length() const { return request_.data().max_length(); }

  absl::StatusOr<EncodedPrompt> Encode(const Example& row) const {
    if (!IsLabelled()) return EncodePromptRow(dataset_, row, tokenizer_, encoding_);
    EncodedPrompt encoded;
    QST_ASSIGN_OR_RETURN(encoded.tokens, EncodeTextRow(dataset_, row, tokenizer_));
    encoded.target_mask.assign(encoded.tokens.size(), 0);
    return encoded;
  }

  void Count(const EncodedPrompt& row) {
    lengths_.push_back(static_cast<std::int64_t>(row.tokens.size()));
    counts_.set_total(counts_.total() + row.tokens.size());
    const auto num_targets = [&row](std::size_t length) {
      const auto end = row.target_mask.begin() + static_cast<std::ptrdiff_t>(std::min(length, row.target_mask.size()));
      return static_cast<std::uint64_t>(std::count(row.target_mask.begin(), end, 1));
    };
    counts_.set_target(counts_.target() + num_targets(row.tokens.size()));
    if (row.tokens.size() > max_length()) counts_.set_truncated(counts_.truncated() + 1);
    if (!IsLabelled() && num_targets(max_length()) == 0) counts_.set_without_target(counts_.without_target() + 1);
  }

  void Render(const Example& row, const EncodedPrompt& encoded, v1::DescribeDatasetResponse* response) {
    if (rendered_bytes_ > kMaxRenderedBytes) return;
    v1::DescribeDatasetResponse::RenderedExample& example = *response->add_examples();
    example.set_line(static_cast<std::uint64_t>(row.line));
    example.set_is_truncated(encoded.tokens.size() > max_length());
    if (IsLabelled()) example.set_label(row.label);
    const std::size_t length = std::min(encoded.tokens.size(), max_length());
    std::string shown;  // text of the segments before
    std::vector<std::int32_t> before;
    for (std::size_t begin = 0; begin < length;) {
      std::size_t end = begin + 1;
      while (end < length && encoded.target_mask[end] == encoded.target_mask[begin]) ++end;
      v1::DescribeDatasetResponse::Segment& segment = *example.add_segments();
      segment.set_bears_loss(encoded.target_mask[begin] != 0);
      const std::vector<std::int32_t> ids(encoded.tokens.begin() + static_cast<std::ptrdiff_t>(begin),
                                          encoded.tokens.begin() + static_cast<std::ptrdiff_t>(end));
      *segment.mutable_token_ids() = {ids.begin(), ids.end()};
      // Decoded with what comes before it, since a text's first space may be the tokenizer's own.
      before.insert(before.end(), ids.begin(), ids.end());
      std::string all = tokenizer_.Decode(before, /*skip_special=*/false);
      segment.set_text(absl::StartsWith(all, shown) ? all.substr(shown.size())
                                                    : tokenizer_.Decode(ids, /*skip_special=*/false));
      shown = std::move(all);
      begin = end;
    }
    rendered_bytes_ += example.ByteSizeLong();
  }

  const v1::DescribeDatasetRequest& request_;
  const Dataset& dataset_;
  const Tokenizer& tokenizer_;
  LanguageModelEncoding encoding_;
  std::vector<std::int64_t> lengths_;
  v1::DescribeDatasetResponse::TokenCounts counts_;
  std::size_t rendered_bytes_ = 0;
};

}  // namespace

absl::StatusOr<v1::DescribeDatasetResponse> DescribeDataset(const v1::DescribeDatasetTask& task,
                                                            const std::atomic<bool>& is_cancelled) {
  const v1::DescribeDatasetRequest& request = task.request();
  QST_ASSIGN_OR_RETURN(const Dataset dataset,
                       ReadDatasetFor(request.task().type(), request.data(), task.dataset_path()));
  v1::DescribeDatasetResponse response;
  response.set_format(std::string(DataFormatName(dataset.format)));
  response.set_kind(std::string(DataKindName(dataset.kind)));
  for (const std::string& column : dataset.columns) response.add_columns(column);
  response.set_num_examples(dataset.examples.size());
  if (dataset.kind == DataKind::kClassification) {
    const auto& labels = request.task().labels();
    if (!labels.empty()) {
      absl::StatusOr<LabelSet> set = LabelSet::FromList({labels.begin(), labels.end()});
      QST_RETURN_IF_ERROR(Annotate(set.status(), "task.labels"));
      QST_RETURN_IF_ERROR(set->Check(dataset));
    }
    CountLabels(dataset, &response);
  }
  if (!task.model_path().empty()) {
    QST_ASSIGN_OR_RETURN(const std::unique_ptr<Tokenizer> tokenizer, Tokenizer::FromModelFolder(task.model_path()));
    QST_RETURN_IF_ERROR(Describer(task, dataset, *tokenizer).Run(is_cancelled, &response));
  }
  return response;
}

}  // namespace qst
