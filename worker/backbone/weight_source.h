// What a stage reads its weights from: the seam between backbone and checkpoint code.
#ifndef QST_WORKER_BACKBONE_WEIGHT_SOURCE_H_
#define QST_WORKER_BACKBONE_WEIGHT_SOURCE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "kernels/tensor.h"
#include "proto/support/status_macros.h"
#include "worker/checkpoint/stored_model.h"

namespace qst {

// A weight that must be [rows, cols]; kDataLoss names it otherwise.
inline absl::StatusOr<WeightView> WeightOfShape(const StoredModel& model, const std::string& name, std::int64_t rows,
                                                std::int64_t cols) {
  QST_ASSIGN_OR_RETURN(WeightView weight, model.Weight(name));
  if (weight.rows() != rows || weight.cols() != cols) {
    return absl::DataLossError(absl::StrCat("tensor ", name, " is [", weight.rows(), ", ", weight.cols(),
                                            "]; the model's config.json asks for [", rows, ", ", cols, "]"));
  }
  return weight;
}

// A vector (norm weight, bias) of n elements as f32.
inline absl::StatusOr<std::vector<float>> VectorOfSize(const StoredModel& model, const std::string& name,
                                                       std::int64_t n) {
  QST_ASSIGN_OR_RETURN(std::vector<float> values, model.Floats(name));
  if (static_cast<std::int64_t>(values.size()) != n) {
    return absl::DataLossError(
        absl::StrCat("tensor ", name, " has ", values.size(), " elements; the model's config.json asks for ", n));
  }
  return values;
}

}  // namespace qst

#endif  // QST_WORKER_BACKBONE_WEIGHT_SOURCE_H_
