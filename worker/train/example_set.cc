#include "worker/train/example_set.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "proto/support/status_macros.h"
#include "worker/checkpoint/file_io.h"

namespace qst {

ExampleSet::ExampleSet(v1::TaskType task, std::vector<EncodedExample> examples, std::vector<std::string> texts)
    : task_(task), examples_(std::move(examples)), texts_(std::move(texts)) {
  QST_CHECK(texts_.empty() || texts_.size() == examples_.size());
  for (const EncodedExample& example : examples_) {
    std::int64_t num = 1;
    if (task_ == v1::TASK_TYPE_CAUSAL_LM) {
      num = 0;
      for (std::size_t i = 1; i < example.target_mask.size(); ++i) num += example.target_mask[i] != 0;
    }
    num_targets_.push_back(num);
  }
}

absl::Status ExampleSet::Check(const SideNetworkConfig& config, const char* what) const {
  for (std::size_t i = 0; i < examples_.size(); ++i) {
    const EncodedExample& example = examples_[i];
    const auto error = [&](const std::string& problem) {
      return absl::InvalidArgumentError(absl::StrCat(what, " example ", i, " (line ", example.line, "): ", problem));
    };
    if (example.tokens.empty()) return error("has no tokens");
    for (const std::int32_t token : example.tokens) {
      if (token < 0 || token >= config.backbone.vocab_size) {
        return error(absl::StrCat("token ", token, " is outside the vocabulary of ", config.backbone.vocab_size));
      }
    }
    if (config.is_regression()) {
      if (!std::isfinite(example.value)) return error("its value is not a finite number");
    } else if (config.is_classification()) {
      if (example.label < 0 || example.label >= config.num_classes()) {
        return error(absl::StrCat("class ", example.label, " is outside the ", config.num_classes(), " labels"));
      }
    } else if (example.target_mask.size() != example.tokens.size()) {
      return error(absl::StrCat("target mask has ", example.target_mask.size(), " entries for ", example.tokens.size(),
                                " tokens"));
    }
  }
  return absl::OkStatus();
}

std::vector<std::int64_t> ExampleSet::Lengths() const {
  std::vector<std::int64_t> out;
  for (const EncodedExample& example : examples_) out.push_back(static_cast<std::int64_t>(example.tokens.size()));
  return out;
}

std::int64_t ExampleSet::max_length() const {
  std::int64_t out = 0;
  for (const EncodedExample& example : examples_) {
    out = std::max(out, static_cast<std::int64_t>(example.tokens.size()));
  }
  return out;
}

std::string ExampleSet::Fingerprint() const {
  Sha256 sha;
  for (const EncodedExample& example : examples_) {
    const std::int64_t header[2] = {static_cast<std::int64_t>(example.tokens.size()), example.label};
    sha.Update(header, sizeof(header));
    sha.Update(example.tokens.data(), example.tokens.size() * sizeof(std::int32_t));
    sha.Update(example.target_mask.data(), example.target_mask.size());
    if (task_ == v1::TASK_TYPE_REGRESSION) sha.Update(&example.value, sizeof(example.value));
  }
  return sha.HexDigest();
}

SideBatch ExampleSet::MakeBatch(const std::vector<std::int64_t>& indices) const {
  SideBatch batch;
  batch.offsets.push_back(0);
  for (const std::int64_t index : indices) {
    const EncodedExample& example = examples_[index];
    const std::int32_t begin = batch.offsets.back();
    const auto length = static_cast<std::int32_t>(example.tokens.size());
    if (task_ == v1::TASK_TYPE_REGRESSION) {
      batch.rows.push_back(begin + length - 1);
      batch.values.push_back(example.value);
    } else if (task_ == v1::TASK_TYPE_CLASSIFICATION) {
      batch.rows.push_back(begin + length - 1);
      batch.targets.push_back(example.label);
    } else {
      // The state of a token predicts the next one.
      for (std::int32_t i = 1; i < length; ++i) {
        if (example.target_mask[i] == 0) continue;
        batch.rows.push_back(begin + i - 1);
        batch.targets.push_back(example.tokens[i]);
      }
    }
    batch.offsets.push_back(begin + length);
  }
  return batch;
}

void ExampleSet::AppendTokens(const std::vector<std::int64_t>& indices, TokenPass* pass) const {
  if (pass->offsets.empty()) pass->offsets.push_back(0);
  for (const std::int64_t index : indices) {
    const std::vector<std::int32_t>& tokens = examples_[index].tokens;
    pass->tokens.insert(pass->tokens.end(), tokens.begin(), tokens.end());
    pass->offsets.push_back(static_cast<std::int32_t>(pass->tokens.size()));
  }
}

}  // namespace qst
