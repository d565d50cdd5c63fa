// The trainable parameters of a side network: one flat float32 buffer each for values, gradients and the optimizer's
// two moments, with a name and a shape for every tensor in them. Names are those of the authors' PyTorch modules and
// part of the file format.
#ifndef QST_WORKER_SIDE_PARAMETERS_H_
#define QST_WORKER_SIDE_PARAMETERS_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "kernels/tensor.h"
#include "worker/side/side_config.h"

namespace qst {

// Tensors that the optimizer treats alike. A group's tensors are neighbours in the buffers.
enum class ParameterGroup : std::uint8_t {
  kWeights,        // weight decay applies
  kNormsAndBiases,
  kGates,          // layer gates and output mix: learning rate times gate_lr_scale
};
inline constexpr int kNumParameterGroups = 3;

enum class ParameterInit : std::uint8_t {
  kKaimingUniform,  // uniform in +-1 / sqrt(fan_in): Kaiming with a = sqrt(5), as PyTorch's nn.Linear
  kOnes,
  kZeros,
  kConstant,
};

struct ParameterInfo {
  std::string name;
  std::vector<std::int64_t> shape;  // 1 or 2 dimensions
  ParameterGroup group = ParameterGroup::kWeights;
  ParameterInit init = ParameterInit::kKaimingUniform;
  float constant = 0.0f;      // kConstant
  std::int64_t fan_in = 1;    // kKaimingUniform
  std::int64_t offset = 0;    // floats from the buffers' start; multiple of 16

  std::int64_t num_elems() const { return shape.size() == 2 ? shape[0] * shape[1] : shape[0]; }
  std::int64_t rows() const { return shape.size() == 2 ? shape[0] : 1; }
  std::int64_t cols() const { return shape.back(); }
};

// All tensors of a configuration, in the order of the buffers: by group, then in the order in which a token meets
// them. Offsets are set.
std::vector<ParameterInfo> ParameterLayout(const SideNetworkConfig& config);

// Owns the four buffers. Gaps between tensors (alignment) hold zeros in all four and stay zero.
class Parameters {
 public:
  struct Range {
    std::int64_t begin = 0;
    std::int64_t end = 0;
  };

  explicit Parameters(std::vector<ParameterInfo> layout);
  Parameters(const Parameters&) = delete;
  Parameters& operator=(const Parameters&) = delete;

  // Start values. Each tensor's depend on the seed and its own name only.
  void Initialise(std::uint64_t seed);
  void ZeroGradients();

  const std::vector<ParameterInfo>& layout() const { return layout_; }
  // Null if there is none of that name.
  const ParameterInfo* Find(absl::string_view name) const;

  // Views of a tensor by name; the name must exist.
  MatrixView Value(absl::string_view name);
  MatrixView Gradient(absl::string_view name);

  std::int64_t size() const { return static_cast<std::int64_t>(values_.size()); }  // floats, gaps included
  std::int64_t num_trainable() const;                                              // floats, gaps excluded
  Range group_range(ParameterGroup group) const { return ranges_[static_cast<int>(group)]; }

  float* values() { return values_.data(); }
  float* gradients() { return gradients_.data(); }
  float* exp_avg() { return exp_avg_.data(); }
  float* exp_avg_sq() { return exp_avg_sq_.data(); }
  const float* values() const { return values_.data(); }
  const float* exp_avg() const { return exp_avg_.data(); }
  const float* exp_avg_sq() const { return exp_avg_sq_.data(); }

 private:
  std::vector<ParameterInfo> layout_;
  std::map<std::string, int, std::less<>> index_;
  Range ranges_[kNumParameterGroups];
  std::vector<float> values_;
  std::vector<float> gradients_;
  std::vector<float> exp_avg_;
  std::vector<float> exp_avg_sq_;
};

}  // namespace qst

#endif  // QST_WORKER_SIDE_PARAMETERS_H_
