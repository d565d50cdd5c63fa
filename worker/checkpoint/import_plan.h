// What an import writes, decided before the first byte: every tensor of the weight file, in order.
#ifndef QST_WORKER_CHECKPOINT_IMPORT_PLAN_H_
#define QST_WORKER_CHECKPOINT_IMPORT_PLAN_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/checkpoint/model_source.h"
#include "worker/checkpoint/safetensors_writer.h"
#include "worker/checkpoint/store_format.h"

namespace qst {

// One source tensor and what becomes of it.
struct ImportItem {
  ModelTensor tensor;
  bool is_quantized = false;
  // If the source has it in 4 bit: stored as it is. Not owned.
  const PrequantizedInfo* prequantized = nullptr;
  DType dtype = DType::kF32;  // of the stored tensor, if not quantized
};

// A piece of the file: which item it comes from and which part of it.
struct ImportPiece {
  enum class Part : std::uint8_t { kDense, kPacked, kAbsmax, kQuantMap, kNestedAbsmax, kNestedQuantMap, kQuantState };
  std::size_t item = 0;
  Part part = Part::kDense;
};

struct ImportPlan {
  std::vector<ImportItem> items;          // in the order in which their first piece is written
  std::vector<ImportPiece> pieces;        // one per entry, same order
  std::vector<SafetensorsEntry> entries;  // without data
  // Of the weights in 4 bit, all of one kind. Not set: there are none.
  std::optional<StoreQuantization> quantization;
  std::uint64_t data_bytes = 0;  // sum over entries
  std::uint64_t embedding_bytes = 0;
  std::uint64_t layers_bytes = 0;
  std::uint64_t head_bytes = 0;

  // Names of linear modules that stay unquantized although others are not ("model.layers.0.mlp.down_proj").
  std::vector<std::string> UnquantizedModules() const;
};

// Bytes reserved for one quantization state's JSON text, which is padded with spaces.
inline constexpr std::int64_t kQuantStateBytes = 256;

// Linear weights become 4-bit ones as `quantization` says. If the source holds any of them in 4 bit, exactly those are,
// as they are there; the parts of `quantization` that are `required` must then be so.
// Unquantized tensors keep the dtype of the source. Those that the source stores in blocks (GGUF) become f16, which
// keeps 8 times finer steps than bf16 and holds any usual weight, or bf16 if one of their values is too large for
// f16. Deciding that reads them once, with num_threads threads.
// kInvalidArgument: options out of range; a value that is not finite; 4-bit weights that are not as required, or not
// all of one kind. kUnimplemented: an embedding or head in 4 bit.
absl::StatusOr<ImportPlan> PlanImport(const ModelSource& source, const std::optional<StoreQuantization>& quantization,
                                      const RequiredQuantization& required, int num_threads);

}  // namespace qst

#endif  // QST_WORKER_CHECKPOINT_IMPORT_PLAN_H_
