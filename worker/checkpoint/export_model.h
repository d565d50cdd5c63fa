// Takes a model out of the model store, as a folder that Hugging Face code loads.
#ifndef QST_WORKER_CHECKPOINT_EXPORT_MODEL_H_
#define QST_WORKER_CHECKPOINT_EXPORT_MODEL_H_

#include <cstdint>
#include <functional>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "kernels/dtype.h"

namespace qst {

struct ExportOptions {
  // Folder of the stored model.
  std::string model;
  // Folder to be made. Its parent must exist; it must not exist itself.
  std::string destination;
  // False: the weights as they are stored, 4-bit ones in the layout of bitsandbytes. True: plain floats, those that the
  // backbone computes with.
  bool dequantize = false;
  // Of all weights if `dequantize`: f32, which is exact, bf16 or f16. Not used otherwise.
  DType dtype = DType::kF32;
  // Dequantized weights go into several files with an index if they would make a larger one. A tensor is never cut.
  std::int64_t max_shard_bytes = 5'000'000'000;
};

// Called now and then from the thread that called ExportModel. Bytes are of weights. what: the tensor or file at hand.
// Returning false cancels the export.
using ExportProgress = std::function<bool(std::int64_t done_bytes, std::int64_t total_bytes, absl::string_view what)>;

// Exports a stored model. The destination appears complete and synced, or not at all: everything is written to
// "<destination>.exporting" first, then renamed. Memory does not depend on the size of the model: a few MB.
// Errors   kNotFound: no stored model there, or no parent folder. kAlreadyExists: destination is there, or another
//          export into it runs. kCancelled: by `progress`. kResourceExhausted: not enough disk space (checked before
//          anything is written). kInvalidArgument: options; a value too large for f16 (the tensor is named).
//          kDataLoss: the stored files are damaged.
[[nodiscard]] absl::Status ExportModel(const ExportOptions& options, const ExportProgress& progress);

}  // namespace qst

#endif  // QST_WORKER_CHECKPOINT_EXPORT_MODEL_H_
