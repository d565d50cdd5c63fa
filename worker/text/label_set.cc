#include <algorithm>
#include <cmath>
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "worker/text/dataset.h"
#include "worker/text/dataset_builder.h"

namespace qst {

absl::StatusOr<LabelSet> LabelSet::FromList(std::vector<std::string> labels) {
  if (labels.empty()) return absl::InvalidArgumentError("the list of labels is empty");
  absl::flat_hash_set<absl::string_view> seen;
  for (const std::string& label : labels) {
    if (!seen.insert(label).second) {
      return absl::InvalidArgumentError(absl::StrCat("the list of labels has \"", label, "\" twice"));
    }
  }
  LabelSet set;
  set.labels_ = std::move(labels);
  return set;
}

absl::StatusOr<LabelSet> LabelSet::Collect(const Dataset& dataset) {
  std::set<std::tuple<bool, double, std::string>> sorted;
  for (const Example& example : dataset.examples) {
    double value = 0;
    const bool is_number = absl::SimpleAtod(example.label, &value) && std::isfinite(value);
    sorted.emplace(!is_number, is_number ? value : 0, example.label);
  }
  std::vector<std::string> labels;
  for (const auto& [is_text, value, label] : sorted) labels.push_back(label);
  return FromList(std::move(labels));
}

std::optional<int32_t> LabelSet::Find(absl::string_view label) const {
  const auto it = std::find(labels_.begin(), labels_.end(), label);
  if (it == labels_.end()) return std::nullopt;
  return static_cast<int32_t>(it - labels_.begin());
}

absl::Status LabelSet::Check(const Dataset& dataset) const {
  const absl::flat_hash_set<absl::string_view> known(labels_.begin(), labels_.end());
  for (const Example& example : dataset.examples) {
    if (known.contains(example.label)) continue;
    return absl::InvalidArgumentError(absl::StrCat(dataset.name, " ", dataset.row_word, " ", example.line, ": label \"",
                                                   example.label, "\" is not one of: ", ListNames(labels_)));
  }
  return absl::OkStatus();
}

}  // namespace qst
