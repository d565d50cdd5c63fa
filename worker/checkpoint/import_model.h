// Brings a model into the model store: reads any supported source, quantizes the linear weights of the layers,
// and writes a folder as FORMAT.md describes it.
#ifndef QST_WORKER_CHECKPOINT_IMPORT_MODEL_H_
#define QST_WORKER_CHECKPOINT_IMPORT_MODEL_H_

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "worker/checkpoint/store_format.h"

namespace qst {

struct ImportOptions {
  // A Hugging Face folder or a weight file of one, a GGUF file, or a llama2.c checkpoint (model_source.h).
  std::string source;
  // Folder to be made. Its parent must exist; it must not exist itself.
  std::string destination;
  // How the model is called in messages. Empty: the last part of `destination`.
  std::string name;
  // Layers' linear weights. Not set: kept unquantized. Default: NF4, blocks of 64, double quantization.
  std::optional<StoreQuantization> quantization = StoreQuantization{};
  // For sources whose weights are in 4 bit already (bitsandbytes), which are stored as they are: the parts of
  // `quantization` that must be so. A source that does not meet them is an error, as it is without `quantization`.
  RequiredQuantization required;
  // Threads that convert and quantize, >= 1.
  int num_threads = 1;
};

// Called now and then from the thread that called ImportModel. Bytes are of the weight file being written.
// what: the tensor or file at hand. Returning false cancels the import.
using ImportProgress = std::function<bool(std::int64_t done_bytes, std::int64_t total_bytes, absl::string_view what)>;

// Imports a model. The destination appears complete, synced and checked, or not at all: everything is written
// to "<destination>.importing" first, then renamed. The result does not depend on num_threads. Takes at most
// about three times the memory of the largest linear weight as float32, whatever the size of the model.
// Errors   kAlreadyExists: destination is there, or another import into it runs. kCancelled: by `progress`.
//          kResourceExhausted: not enough disk space (checked before anything is written).
//          kInvalidArgument: options; source broken, tensors missing or not finite. kNotFound: source, or its
//          tokenizer. kUnimplemented, kDataLoss: of the readers.
[[nodiscard]] absl::Status ImportModel(const ImportOptions& options, const ImportProgress& progress);

}  // namespace qst

#endif  // QST_WORKER_CHECKPOINT_IMPORT_MODEL_H_
