// Weights that bitsandbytes quantized to 4 bit, read without quantizing them again: a source over another one, in which
// X.weight and its companions (absmax, quant_map, ..., see FORMAT.md) appear as one weight of its original shape.
#ifndef QST_WORKER_CHECKPOINT_BITSANDBYTES_WEIGHTS_H_
#define QST_WORKER_CHECKPOINT_BITSANDBYTES_WEIGHTS_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "worker/checkpoint/store_format.h"
#include "worker/checkpoint/tensor_source.h"

namespace qst {

class BitsandbytesWeights : public TensorSource {
 public:
  // Whether a source has weights of that kind.
  static bool IsIn(const TensorSource& source);

  // Checks every part of every such weight: sizes against each other, tables against the standard ones (the
  // table of nested constants but for its last bits: it is taken over), constants for being finite. `where` names the
  // model. Errors   kInvalidArgument: parts missing or of the wrong size, other tables, constants that are not finite.
  //          kUnimplemented: block sizes other than those of Quant4Options, 8-bit weights. kDataLoss: quant_state
  //          broken.
  static absl::StatusOr<std::unique_ptr<BitsandbytesWeights>> Create(std::unique_ptr<TensorSource> source,
                                                                     const std::string& where);

  const std::vector<std::string>& names() const override { return names_; }
  const TensorInfo* Find(absl::string_view name) const override;
  absl::Status ReadFloat(absl::string_view name, std::int64_t first, std::int64_t count, float* out) const override;
  absl::Status ReadBytes(absl::string_view name, std::int64_t first, std::int64_t count, void* out) const override;
  const PrequantizedInfo* Prequantized(absl::string_view name) const override;
  absl::StatusOr<Quant4Tensor> ReadQuant4(absl::string_view name) const override;
  void Release(absl::string_view name) const override;

 private:
  struct Weight {
    TensorInfo info;
    PrequantizedInfo quantized;
    float nested_offset = 0.0f;
  };

  BitsandbytesWeights(std::unique_ptr<TensorSource> source, std::string where)
      : source_(std::move(source)), where_(std::move(where)) {}
  absl::Status AddWeight(const std::string& name, const std::string& state_name, Quant4Type type);
  absl::StatusOr<std::vector<float>> ReadTable(const std::string& name, std::int64_t num_elems) const;
  absl::Status CheckConstants(const std::string& name, std::int64_t num_elems) const;

  std::unique_ptr<TensorSource> source_;
  std::string where_;
  std::vector<std::string> names_;
  std::map<std::string, Weight, std::less<>> weights_;
};

}  // namespace qst

#endif  // QST_WORKER_CHECKPOINT_BITSANDBYTES_WEIGHTS_H_
