// A set of encoded examples as training uses it: their targets, and their packing into micro-batches and passes.
#ifndef QST_WORKER_TRAIN_EXAMPLE_SET_H_
#define QST_WORKER_TRAIN_EXAMPLE_SET_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "worker/side/side_config.h"
#include "worker/side/side_network.h"
#include "worker/stream/token_pass.h"
#include "worker/text/encoded_dataset.h"

namespace qst {

class ExampleSet {
 public:
  // texts: shown beside predictions; empty, or one per example.
  ExampleSet(v1::TaskType task, std::vector<EncodedExample> examples, std::vector<std::string> texts = {});

  // kInvalidArgument: an example without tokens, masks of another length, labels or tokens out of range, values that are
  // not finite.
  absl::Status Check(const SideNetworkConfig& config, const char* what) const;

  std::int64_t size() const { return static_cast<std::int64_t>(examples_.size()); }
  const EncodedExample& operator[](std::int64_t i) const { return examples_[i]; }
  // Null if there are no texts.
  const std::string* text(std::int64_t i) const { return texts_.empty() ? nullptr : &texts_[i]; }
  std::vector<std::int64_t> Lengths() const;
  std::int64_t NumTargets(std::int64_t example) const { return num_targets_[example]; }
  std::int64_t max_length() const;  // tokens
  // SHA-256 of all tokens, masks and labels or values.
  std::string Fingerprint() const;

  // What the side network predicts in these examples, packed in this order.
  SideBatch MakeBatch(const std::vector<std::int64_t>& indices) const;
  // Adds their tokens to a backbone pass.
  void AppendTokens(const std::vector<std::int64_t>& indices, TokenPass* pass) const;

 private:
  v1::TaskType task_;
  std::vector<EncodedExample> examples_;
  std::vector<std::string> texts_;
  std::vector<std::int64_t> num_targets_;
};

}  // namespace qst

#endif  // QST_WORKER_TRAIN_EXAMPLE_SET_H_
