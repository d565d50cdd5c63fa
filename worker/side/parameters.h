// The trainable parameters of a side network: one flat float32 buffer each for values, gradients and the optimizer's
// two moments, in the memory of the device that trains them, with a name and a shape for every tensor in them. Names
// are those of the authors' PyTorch modules and part of the file format.
#ifndef QST_WORKER_SIDE_PARAMETERS_H_
#define QST_WORKER_SIDE_PARAMETERS_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kernels/device.h"
#include "kernels/device_memory.h"
#include "kernels/tensor.h"
#include "worker/side/side_config.h"

namespace qst {

// Tensors that the optimizer treats alike. A group's tensors are neighbours in the buffers.
enum class ParameterGroup : std::uint8_t {
  kWeights,  // weight decay applies
  kNormsAndBiases,
  kGates,  // layer gates and output mix: learning rate times gate_lr_scale
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
  float constant = 0.0f;    // kConstant
  std::int64_t fan_in = 1;  // kKaimingUniform
  std::int64_t offset = 0;  // floats from the buffers' start; multiple of 16

  std::int64_t num_elems() const { return shape.size() == 2 ? shape[0] * shape[1] : shape[0]; }
  std::int64_t rows() const { return shape.size() == 2 ? shape[0] : 1; }
  std::int64_t cols() const { return shape.back(); }
};

// All tensors of a configuration, in the order of the buffers: by group, then in the order in which a token meets
// them. Offsets are set.
std::vector<ParameterInfo> ParameterLayout(const SideNetworkConfig& config);

enum class ParameterBuffer : std::uint8_t { kValues, kGradients, kExpAvg, kExpAvgSq };
inline constexpr int kNumParameterBuffers = 4;

// Owns the four buffers. Gaps between tensors (alignment) hold zeros in all four and stay zero. The host sees values
// through Download and changes them through Upload alone: the pointers are the device's.
class Parameters {
 public:
  struct Range {
    std::int64_t begin = 0;
    std::int64_t end = 0;
  };

  // All zeros. What `ctx` points to must outlive the parameters. kResourceExhausted: out of memory, or beyond the
  // device's budget.
  static absl::StatusOr<std::unique_ptr<Parameters>> Create(const OpContext& ctx, std::vector<ParameterInfo> layout);
  // Waits for enqueued work: the memory may go to another stream.
  ~Parameters();
  Parameters(const Parameters&) = delete;
  Parameters& operator=(const Parameters&) = delete;

  // Start values, computed on the host; no gradients, no moments. Each tensor's depend on the seed and its own name
  // only.
  absl::Status Initialise(std::uint64_t seed);
  absl::Status ZeroGradients();

  const std::vector<ParameterInfo>& layout() const { return layout_; }
  // Null if there is none of that name.
  const ParameterInfo* Find(absl::string_view name) const;

  // Views of a tensor by name; the name must exist.
  MatrixView Value(absl::string_view name);
  MatrixView Gradient(absl::string_view name);

  std::int64_t size() const { return size_; }  // floats, gaps included
  std::int64_t num_trainable() const;          // floats, gaps excluded
  Range group_range(ParameterGroup group) const { return ranges_[static_cast<int>(group)]; }

  float* data(ParameterBuffer buffer) { return buffers_[static_cast<int>(buffer)].as<float>(); }
  const float* data(ParameterBuffer buffer) const { return buffers_[static_cast<int>(buffer)].as<float>(); }

  // One tensor (of layout()) between a buffer and the host, num_elems() floats, at any address.
  absl::Status Upload(ParameterBuffer buffer, const ParameterInfo& info, const void* host);
  absl::Status Download(ParameterBuffer buffer, const ParameterInfo& info, void* host) const;
  // A whole buffer, gaps included.
  absl::StatusOr<std::vector<float>> Download(ParameterBuffer buffer) const;

 private:
  Parameters(const OpContext& ctx, std::vector<ParameterInfo> layout);
  MatrixView View(ParameterBuffer buffer, absl::string_view name);

  const OpContext ctx_;
  std::vector<ParameterInfo> layout_;
  std::map<std::string, int, std::less<>> index_;
  std::int64_t size_ = 0;
  Range ranges_[kNumParameterGroups];
  DeviceMemory buffers_[kNumParameterBuffers];
};

}  // namespace qst

#endif  // QST_WORKER_SIDE_PARAMETERS_H_
