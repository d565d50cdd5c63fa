// Names and small structures of the model store's files; FORMAT.md describes them.
#ifndef QST_WORKER_CHECKPOINT_STORE_FORMAT_H_
#define QST_WORKER_CHECKPOINT_STORE_FORMAT_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kernels/tensor.h"

namespace qst {

inline constexpr char kStoreConfigFile[] = "config.json";
inline constexpr char kStoreWeightsFile[] = "model.safetensors";
inline constexpr char kStoreManifestFile[] = "qst_model.json";
inline constexpr std::int64_t kStoreFormatVersion = 1;
inline constexpr std::uint64_t kStoreMaxJsonBytes = 16 << 20;

// Companions of a quantized weight X.weight are named X.weight + suffix.
inline constexpr char kAbsmaxSuffix[] = ".absmax";                          // U8 codes, or F32 without double quant
inline constexpr char kQuantMapSuffix[] = ".quant_map";                     // F32 [16]
inline constexpr char kNestedAbsmaxSuffix[] = ".nested_absmax";             // F32
inline constexpr char kNestedQuantMapSuffix[] = ".nested_quant_map";        // F32 [256]
inline constexpr char kQuantStateSuffix[] = ".quant_state.bitsandbytes__";  // + "nf4" or "fp4"; U8, JSON text

constexpr const char* Quant4TypeName(Quant4Type type) { return type == Quant4Type::kNF4 ? "nf4" : "fp4"; }

// How a model's linear weights are stored. Not set: unquantized.
struct StoreQuantization {
  Quant4Type type = Quant4Type::kNF4;
  std::int64_t block_size = 64;  // elements
  bool double_quant = true;
};

// Which parts of a StoreQuantization somebody insists on.
struct RequiredQuantization {
  bool type = false;
  bool block_size = false;
  bool double_quant = false;
};

// The JSON text beside each quantized weight.
struct QuantState {
  Quant4Type type = Quant4Type::kNF4;
  std::int64_t block_size = 64;
  std::string dtype = "float32";    // of the original weight: float32, float16 or bfloat16
  std::vector<std::int64_t> shape;  // of the original weight: [outputs, inputs]
  bool double_quant = false;
  std::int64_t nested_block_size = 256;
  float nested_offset = 0.0f;
};

std::string QuantStateToJson(const QuantState& state);
// `where` names file and tensor. kDataLoss: not what QuantStateToJson or bitsandbytes writes.
absl::StatusOr<QuantState> ParseQuantState(absl::string_view json_text, absl::string_view where);

// What the manifest says of one layer.
struct StoreLayer {
  std::int64_t num_parameters = 0;
  std::int64_t bytes = 0;  // of tensor data in the weight file
  // Of its quantized weights: root of the sum of squared errors over that of squared values. 0 if none was quantized.
  double quantization_error = 0.0;
  // The weight with the largest such error of its own ("mlp.down_proj.weight"), and that error. Empty if there is none.
  std::string worst_tensor;
  double worst_error = 0.0;
};

// qst_model.json.
struct StoreManifest {
  std::int64_t format_version = kStoreFormatVersion;
  std::string name;
  std::string source_path;
  std::string source_format;       // "gguf", "llama2.c", "safetensors" or "pytorch"
  std::uint64_t source_bytes = 0;  // of the source's weight files
  std::optional<StoreQuantization> quantization;
  std::int64_t num_parameters = 0;
  std::string weights_sha256;       // of model.safetensors, lower-case hexadecimal
  std::uint64_t weights_bytes = 0;  // size of model.safetensors
  std::uint64_t embedding_bytes = 0;
  std::uint64_t layers_bytes = 0;  // of all layers
  std::uint64_t head_bytes = 0;    // last norm, and the head if it is not tied
  // As of a layer, over all layers.
  double quantization_error = 0.0;
  std::vector<StoreLayer> layers;  // empty in models that were imported before it was kept
};

std::string StoreManifestToJson(const StoreManifest& manifest);
// kInvalidArgument: broken. kUnimplemented: a format version that this code does not know.
absl::StatusOr<StoreManifest> ParseStoreManifest(absl::string_view json_text, absl::string_view where);

// config.json's quantization_config, such that Hugging Face code loads the folder through bitsandbytes.
// unquantized_modules: linear modules of layers that are not quantized.
std::string QuantizationConfigJson(const StoreQuantization& quantization,
                                   const std::vector<std::string>& unquantized_modules);

}  // namespace qst

#endif  // QST_WORKER_CHECKPOINT_STORE_FORMAT_H_
