// Where a model's tensors come from, whatever the file format: every source presents Hugging Face names,
// shapes and layout, and hands out any range of elements as float32.
#ifndef QST_WORKER_CHECKPOINT_TENSOR_SOURCE_H_
#define QST_WORKER_CHECKPOINT_TENSOR_SOURCE_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kernels/dtype.h"
#include "kernels/quant/quant4.h"

namespace qst {

struct TensorInfo {
  std::string encoding;             // the file's own word: "F32", "BF16", "Q4_K", ...
  std::optional<DType> dtype;       // set if elements are stored plainly in this dtype
  std::vector<std::int64_t> shape;  // row-major, slowest dimension first
  std::int64_t num_elems = 0;       // product of shape
};

// A weight that the file holds in 4 bit already.
struct PrequantizedInfo {
  Quant4Options options;
  std::string dtype = "float32";  // of the weight before that: float32, float16 or bfloat16
};

// Thread-safe: const members may be called from several threads at once.
class TensorSource {
 public:
  virtual ~TensorSource() = default;

  // In the order of the file.
  virtual const std::vector<std::string>& names() const = 0;
  // Null if there is no such tensor. Valid as long as the source.
  virtual const TensorInfo* Find(absl::string_view name) const = 0;
  // Elements [first, first + count) of the row-major tensor, dequantized where needed, into out[count].
  // Touches only the part of the file that holds them.
  // Errors   kNotFound: no such tensor. kInvalidArgument: range outside it. kUnimplemented: not a number
  //          format that is read as float32 (integers, ...).
  virtual absl::Status ReadFloat(absl::string_view name, std::int64_t first, std::int64_t count, float* out) const = 0;
  // Bytes [first, first + count) of the tensor as it is stored, which must be plainly one element after another.
  // Errors   kNotFound, kInvalidArgument as above. kUnimplemented: stored in another way, or by a format without such
  //          tensors.
  virtual absl::Status ReadBytes(absl::string_view name, std::int64_t first, std::int64_t count, void* out) const;
  // How the file holds a weight in 4 bit; null for all others. Valid as long as the source. Then ReadQuant4 gives codes
  // and constants as they are, and ReadFloat what they mean.
  virtual const PrequantizedInfo* Prequantized(absl::string_view name) const;
  virtual absl::StatusOr<Quant4Tensor> ReadQuant4(absl::string_view name) const;
  // Lets go of the memory that reading `name` has taken. It may be read again.
  virtual void Release(absl::string_view name) const = 0;
};

// Elements [first, ...) of a tensor that is stored as float64, `data` being the first one's bytes, narrowed to float32.
// kInvalidArgument if a finite one is too large; the message names it, and the tensor `name` of the file `where`.
absl::Status NarrowFloat64(const std::uint8_t* data, std::int64_t first, std::int64_t count, absl::string_view where,
                           absl::string_view name, float* out);

// The checks that every ReadFloat starts with, and ReadBytes. `where` names the file.
absl::Status CheckReadRange(const TensorInfo* info, absl::string_view where, absl::string_view name, std::int64_t first,
                            std::int64_t count);
absl::Status CheckByteRange(std::int64_t num_bytes, absl::string_view where, absl::string_view name, std::int64_t first,
                            std::int64_t count);

}  // namespace qst

#endif  // QST_WORKER_CHECKPOINT_TENSOR_SOURCE_H_
