#include "worker/checkpoint/prefixed_tensors.h"

#include <algorithm>
#include <utility>

#include "absl/memory/memory.h"
#include "absl/strings/match.h"

namespace qst {

std::unique_ptr<TensorSource> PrefixedTensors::Wrap(std::unique_ptr<TensorSource> tensors, const std::string& prefix) {
  const std::vector<std::string>& names = tensors->names();
  const auto has_prefix = [&](const std::string& name) { return absl::StartsWith(name, prefix); };
  if (std::any_of(names.begin(), names.end(), has_prefix)) return tensors;
  return absl::WrapUnique(new PrefixedTensors(std::move(tensors), prefix));
}

PrefixedTensors::PrefixedTensors(std::unique_ptr<TensorSource> tensors, const std::string& prefix)
    : tensors_(std::move(tensors)), prefix_(prefix) {
  for (const std::string& name : tensors_->names()) names_.push_back(prefix_ + name);
}

absl::string_view PrefixedTensors::Inner(absl::string_view name) const {
  if (!absl::StartsWith(name, prefix_)) return absl::string_view();
  return name.substr(prefix_.size());
}

const TensorInfo* PrefixedTensors::Find(absl::string_view name) const { return tensors_->Find(Inner(name)); }

absl::Status PrefixedTensors::ReadFloat(absl::string_view name, std::int64_t first, std::int64_t count,
                                        float* out) const {
  return tensors_->ReadFloat(Inner(name), first, count, out);
}

absl::Status PrefixedTensors::ReadBytes(absl::string_view name, std::int64_t first, std::int64_t count,
                                        void* out) const {
  return tensors_->ReadBytes(Inner(name), first, count, out);
}

const PrequantizedInfo* PrefixedTensors::Prequantized(absl::string_view name) const {
  return tensors_->Prequantized(Inner(name));
}

absl::StatusOr<Quant4Tensor> PrefixedTensors::ReadQuant4(absl::string_view name) const {
  return tensors_->ReadQuant4(Inner(name));
}

void PrefixedTensors::Release(absl::string_view name) const { tensors_->Release(Inner(name)); }

}  // namespace qst
