// Files that were saved from a model's body alone name its tensors without the prefix that the whole model gives them.
#ifndef QST_WORKER_CHECKPOINT_PREFIXED_TENSORS_H_
#define QST_WORKER_CHECKPOINT_PREFIXED_TENSORS_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "worker/checkpoint/tensor_source.h"

namespace qst {

class PrefixedTensors : public TensorSource {
 public:
  // `tensors` itself if any of its names has the prefix; else a source of the same tensors with the prefix before every
  // name.
  static std::unique_ptr<TensorSource> Wrap(std::unique_ptr<TensorSource> tensors, const std::string& prefix);

  const std::vector<std::string>& names() const override { return names_; }
  const TensorInfo* Find(absl::string_view name) const override;
  absl::Status ReadFloat(absl::string_view name, std::int64_t first, std::int64_t count, float* out) const override;
  absl::Status ReadBytes(absl::string_view name, std::int64_t first, std::int64_t count, void* out) const override;
  const PrequantizedInfo* Prequantized(absl::string_view name) const override;
  absl::StatusOr<Quant4Tensor> ReadQuant4(absl::string_view name) const override;
  void Release(absl::string_view name) const override;

 private:
  PrefixedTensors(std::unique_ptr<TensorSource> tensors, const std::string& prefix);
  // Without the prefix; empty, which no tensor is called, if it lacks it.
  absl::string_view Inner(absl::string_view name) const;

  const std::unique_ptr<TensorSource> tensors_;
  const std::string prefix_;
  std::vector<std::string> names_;
};

}  // namespace qst

#endif  // QST_WORKER_CHECKPOINT_PREFIXED_TENSORS_H_
