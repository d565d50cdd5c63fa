// Data sets as tokens: what the batcher orders and the trainer consumes.
#ifndef QST_WORKER_TEXT_ENCODED_DATASET_H_
#define QST_WORKER_TEXT_ENCODED_DATASET_H_

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/text/dataset.h"
#include "worker/text/prompt_template.h"
#include "worker/text/tokenizer.h"

namespace qst {

struct EncodedExample {
  std::vector<int32_t> tokens;  // at least one
  // Language modelling: 1 where predicting this token from those before it bears loss; the first is 0.
  // Classification and regression: empty.
  std::vector<uint8_t> target_mask;
  int32_t label = -1;  // class, -1: none
  float value = 0;     // the label as a number, where it is one
  int64_t line = 0;    // of the data file
};

struct EncodingStats {
  int64_t rows = 0;           // of the data file
  int64_t examples = 0;       // rows - dropped
  int64_t tokens = 0;         // of all examples
  int64_t target_tokens = 0;  // of them, those that bear loss
  int64_t tokens_p50 = 0;     // of one example: half have at most so many
  int64_t tokens_p95 = 0;
  int64_t tokens_max = 0;
  int64_t truncated = 0;                                      // examples that were longer than max_length
  int64_t dropped = 0;                                        // rows with no target token within max_length
  std::vector<std::pair<std::string, int64_t>> label_counts;  // in the order of the classes
};

// The smallest of the sorted values (at least one) that so many percent of them do not exceed.
int64_t Percentile(const std::vector<int64_t>& sorted, size_t percent);

struct EncodedDataset {
  std::vector<EncodedExample> examples;
  EncodingStats stats;

  // For the batcher.
  std::vector<int64_t> Lengths() const;
};

// The tokens of one row for a classifier or regressor that reads the last one: BOS only if the tokenizer adds it, the
// text, and where there is a pair, a line break and the second text; no EOS. An empty text becomes EOS (or BOS) alone.
// Errors  kResourceExhausted: see Tokenizer::Encode; the row is named.
absl::StatusOr<std::vector<int32_t>> EncodeTextRow(const Dataset& dataset, const Example& row,
                                                   const Tokenizer& tokenizer);

// Data of kind kClassification or kRegression by EncodeTextRow. Longer ones lose tokens at their end. `labels` may be
// null: for regression, and for rows to be predicted.
// Errors  kInvalidArgument: a label outside the set (the row is named), another kind of data, max_length
//         below 2. kResourceExhausted: see Tokenizer::Encode.
absl::StatusOr<EncodedDataset> EncodeClassification(const Dataset& dataset, const Tokenizer& tokenizer,
                                                    const LabelSet* labels, int64_t max_length);

struct LanguageModelEncoding {
  PromptFormat format;
  int64_t max_length = 512;
  bool train_on_prompt = false;
};

// One row of a language model's data by EncodeSegments, whole.
// Errors  kResourceExhausted: see Tokenizer::Encode; the row is named.
absl::StatusOr<EncodedPrompt> EncodePromptRow(const Dataset& dataset, const Example& row, const Tokenizer& tokenizer,
                                              const LanguageModelEncoding& options);

// Prompts with answers, tokenized by EncodePromptRow. Longer ones are cut at max_length; rows of which no
// target is left are dropped and counted.
// Errors  kInvalidArgument: no row has a target, max_length below 2. kResourceExhausted: see
//         Tokenizer::Encode.
absl::StatusOr<EncodedDataset> EncodeLanguageModel(const Dataset& dataset, const Tokenizer& tokenizer,
                                                   const LanguageModelEncoding& options);

}  // namespace qst

#endif  // QST_WORKER_TEXT_ENCODED_DATASET_H_
