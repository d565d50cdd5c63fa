// What quantization costs, added up layer by layer while an import goes on.
#ifndef QST_WORKER_CHECKPOINT_IMPORT_ERRORS_H_
#define QST_WORKER_CHECKPOINT_IMPORT_ERRORS_H_

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "worker/checkpoint/model_config.h"
#include "worker/checkpoint/quantize_pipeline.h"
#include "worker/checkpoint/store_format.h"

namespace qst {

// Fed with every tensor of the model and every entry of the weight file; Finish fills in the manifest's layers and
// errors.
class ErrorSummary {
 public:
  explicit ErrorSummary(std::int64_t num_layers) : sums_(static_cast<std::size_t>(num_layers)) {}

  void AddEntry(const ModelTensor& tensor, std::int64_t bytes) {
    if (tensor.layer >= 0) LayerOf(tensor).summary.bytes += bytes;
  }
  void AddTensor(const ModelTensor& tensor) {
    if (tensor.layer >= 0) LayerOf(tensor).summary.num_parameters += tensor.num_elems();
  }
  void AddWeight(const ModelTensor& tensor, const QuantizedWeight& weight) {
    squared_error_ += weight.squared_error;
    squared_norm_ += weight.squared_norm;
    if (tensor.layer < 0) return;  // a projection of the embedding, of no layer
    Sums& layer = LayerOf(tensor);
    layer.squared_error += weight.squared_error;
    layer.squared_norm += weight.squared_norm;
    const double error = Relative(weight.squared_error, weight.squared_norm);
    if (error <= layer.summary.worst_error) return;
    layer.summary.worst_error = error;
    // What follows the layer's number: "mlp.down_proj.weight".
    const std::string number = absl::StrCat(".", tensor.layer, ".");
    layer.summary.worst_tensor = tensor.name.substr(tensor.name.find(number) + number.size());
  }
  void Finish(StoreManifest* manifest) const {
    for (const Sums& layer : sums_) {
      manifest->layers.push_back(layer.summary);
      manifest->layers.back().quantization_error = Relative(layer.squared_error, layer.squared_norm);
    }
    manifest->quantization_error = Relative(squared_error_, squared_norm_);
  }

 private:
  struct Sums {
    StoreLayer summary;
    double squared_error = 0.0;
    double squared_norm = 0.0;
  };
  static double Relative(double squared_error, double squared_norm) {
    return squared_norm > 0.0 ? std::sqrt(squared_error / squared_norm) : 0.0;
  }
  Sums& LayerOf(const ModelTensor& tensor) { return sums_[static_cast<std::size_t>(tensor.layer)]; }

  std::vector<Sums> sums_;
  double squared_error_ = 0.0;
  double squared_norm_ = 0.0;
};

}  // namespace qst

#endif  // QST_WORKER_CHECKPOINT_IMPORT_ERRORS_H_
