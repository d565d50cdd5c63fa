#include "worker/text/encoded_dataset.h"

#include <algorithm>
#include <optional>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "proto/support/status_macros.h"

namespace qst {
namespace {

// Two tokens are the least from which something can be predicted.
constexpr int64_t kMinLength = 2;

absl::Status CheckMaxLength(int64_t max_length) {
  if (max_length >= kMinLength) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("max_length is ", max_length, ", must be at least ", kMinLength, " tokens"));
}

std::string Where(const Dataset& dataset, const Example& example) {
  return absl::StrCat(dataset.name, " ", dataset.row_word, " ", example.line);
}

void Summarise(EncodedDataset* encoded) {
  EncodingStats& stats = encoded->stats;
  stats.examples = static_cast<int64_t>(encoded->examples.size());
  std::vector<int64_t> lengths = encoded->Lengths();
  for (const EncodedExample& example : encoded->examples) {
    stats.tokens += static_cast<int64_t>(example.tokens.size());
    stats.target_tokens += std::count(example.target_mask.begin(), example.target_mask.end(), 1);
  }
  if (lengths.empty()) return;
  std::sort(lengths.begin(), lengths.end());
  stats.tokens_p50 = Percentile(lengths, 50);
  stats.tokens_p95 = Percentile(lengths, 95);
  stats.tokens_max = lengths.back();
}

}  // namespace

int64_t Percentile(const std::vector<int64_t>& sorted, size_t percent) {
  return sorted[(sorted.size() * percent + 99) / 100 - 1];
}

std::vector<int64_t> EncodedDataset::Lengths() const {
  std::vector<int64_t> lengths;
  lengths.reserve(examples.size());
  for (const EncodedExample& example : examples) lengths.push_back(static_cast<int64_t>(example.tokens.size()));
  return lengths;
}

absl::StatusOr<std::vector<int32_t>> EncodeTextRow(const Dataset& dataset, const Example& row,
                                                   const Tokenizer& tokenizer) {
  const std::string joined = row.text_pair.has_value() ? absl::StrCat(row.text, "\n", *row.text_pair) : row.text;
  absl::StatusOr<std::vector<int32_t>> ids = tokenizer.Encode(joined, /*add_special=*/false);
  if (!ids.ok()) return Annotate(ids.status(), Where(dataset, row));
  std::vector<int32_t> tokens;
  if (tokenizer.adds_bos()) tokens.push_back(*tokenizer.bos_id());
  tokens.insert(tokens.end(), ids->begin(), ids->end());
  if (tokens.empty()) tokens.push_back(tokenizer.eos_id().value_or(tokenizer.bos_id().value_or(0)));
  return tokens;
}

absl::StatusOr<EncodedDataset> EncodeClassification(const Dataset& dataset, const Tokenizer& tokenizer,
                                                    const LabelSet* labels, int64_t max_length) {
  QST_RETURN_IF_ERROR(CheckMaxLength(max_length));
  const bool is_regression = dataset.kind == DataKind::kRegression && labels == nullptr;
  if (dataset.kind != DataKind::kClassification && !is_regression) {
    return absl::InvalidArgumentError(
        absl::StrCat(dataset.name, ": ", DataKindName(dataset.kind), " data cannot train a classifier"));
  }
  if (labels != nullptr) QST_RETURN_IF_ERROR(labels->Check(dataset));
  EncodedDataset encoded;
  encoded.stats.rows = static_cast<int64_t>(dataset.examples.size());
  if (labels != nullptr) {
    for (const std::string& label : labels->labels()) encoded.stats.label_counts.emplace_back(label, 0);
  }
  encoded.examples.reserve(dataset.examples.size());
  for (const Example& row : dataset.examples) {
    EncodedExample example;
    example.line = row.line;
    QST_ASSIGN_OR_RETURN(example.tokens, EncodeTextRow(dataset, row, tokenizer));
    if (static_cast<int64_t>(example.tokens.size()) > max_length) {
      example.tokens.resize(static_cast<size_t>(max_length));
      ++encoded.stats.truncated;
    }
    double value = 0;
    if (absl::SimpleAtod(row.label, &value)) example.value = static_cast<float>(value);
    if (labels != nullptr) {
      example.label = labels->Find(row.label).value_or(-1);
      ++encoded.stats.label_counts[example.label].second;
    }
    encoded.examples.push_back(std::move(example));
  }
  Summarise(&encoded);
  return encoded;
}

absl::StatusOr<EncodedPrompt> EncodePromptRow(const Dataset& dataset, const Example& row, const Tokenizer& tokenizer,
                                              const LanguageModelEncoding& options) {
  absl::StatusOr<EncodedPrompt> prompt = EncodeSegments(RenderExample(options.format, dataset.kind, row), tokenizer);
  if (!prompt.ok()) return Annotate(prompt.status(), Where(dataset, row));
  if (options.train_on_prompt && !prompt->target_mask.empty()) {
    std::fill(prompt->target_mask.begin() + 1, prompt->target_mask.end(), uint8_t{1});
  }
  return prompt;
}

absl::StatusOr<EncodedDataset> EncodeLanguageModel(const Dataset& dataset, const Tokenizer& tokenizer,
                                                   const LanguageModelEncoding& options) {
  QST_RETURN_IF_ERROR(CheckMaxLength(options.max_length));
  EncodedDataset encoded;
  encoded.stats.rows = static_cast<int64_t>(dataset.examples.size());
  encoded.examples.reserve(dataset.examples.size());
  for (const Example& row : dataset.examples) {
    QST_ASSIGN_OR_RETURN(EncodedPrompt prompt, EncodePromptRow(dataset, row, tokenizer, options));
    EncodedExample example;
    example.line = row.line;
    example.tokens = std::move(prompt.tokens);
    example.target_mask = std::move(prompt.target_mask);
    const bool is_long = static_cast<int64_t>(example.tokens.size()) > options.max_length;
    if (is_long) {
      example.tokens.resize(static_cast<size_t>(options.max_length));
      example.target_mask.resize(static_cast<size_t>(options.max_length));
    }
    if (std::find(example.target_mask.begin(), example.target_mask.end(), 1) == example.target_mask.end()) {
      ++encoded.stats.dropped;
      continue;
    }
    encoded.stats.truncated += is_long;
    encoded.examples.push_back(std::move(example));
  }
  if (encoded.examples.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(dataset.name, ": none of ", encoded.stats.rows,
                                                   " rows has an answer within max_length = ", options.max_length,
                                                   " tokens; raise data.max_length"));
  }
  Summarise(&encoded);
  return encoded;
}

}  // namespace qst
