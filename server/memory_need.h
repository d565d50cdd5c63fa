// What the parts of a job may take of their workers' memory, computed from the model's record and the job's settings
// before anything is loaded: placement refuses what cannot fit. Pure functions.
//
// It bounds weights, activations, parameters with gradients and optimizer, and hidden states on their way. It does not
// know the process itself, a GPU's context, or the data set. The worker computes its own budget from the real tensors
// when it loads them; tests/agreement holds the two together.
#ifndef QST_SERVER_MEMORY_NEED_H_
#define QST_SERVER_MEMORY_NEED_H_

#include <cstdint>

#include "proto/qst/v1/coordinator.pb.h"
#include "proto/qst/v1/job_spec.pb.h"
#include "proto/qst/v1/resources.pb.h"

namespace qst {

// What a job asks of its parts.
struct JobLoad {
  std::uint64_t pass_tokens = 0;  // of one backbone pass
  std::uint64_t passes_in_flight = 1;
  v1::WireDtype wire_dtype = v1::WIRE_DTYPE_BF16;
  v1::ComputeDtype compute_dtype = v1::COMPUTE_DTYPE_BF16;  // of stages on GPUs
  std::uint64_t cached_tokens = 0;  // keys and values that stages and side network keep, in generation
  bool has_side_network = true;     // false: the model alone
  v1::SideConfig side;
  v1::TaskConfig task;
  std::uint64_t micro_batch_tokens = 0;  // of one forward and backward pass in training; 0: nothing is trained
  bool has_linear_probe = false;
};

// `spec` has its defaults filled in.
JobLoad LoadOfTraining(const v1::JobSpec& spec);
// `trained`: the spec of the job whose side network is used, or null. Tokens: prompt and text together.
JobLoad LoadOfGeneration(const v1::GenerateRequest& request, const v1::JobSpec* trained, std::uint64_t max_tokens);

class MemoryNeed {
 public:
  MemoryNeed(const v1::Model& model, const JobLoad& load, v1::DeviceKind device);

  // False for a model whose record says too little; then all needs are 0.
  bool is_known() const { return model_.hidden_size() > 0 && model_.layer_bytes() > 0; }
  // Of a stage that holds layers [first_layer, first_layer + num_layers).
  std::uint64_t StageBytes(std::uint32_t first_layer, std::uint32_t num_layers) const;
  std::uint64_t SideBytes() const;

 private:
  std::uint64_t SideParameters() const;
  // Kept for the backward pass, and the dearest moment on top of it.
  std::uint64_t SideActivationBytes() const;
  bool HasScoreHead() const;
  std::uint64_t NumOutputs() const;
  // Rows that the head works on at a time.
  std::uint64_t HeadRows() const;
  // Of one row: the last layer's state, and what it is projected to.
  std::uint64_t HeadStateFloats() const;

  const v1::Model model_;
  const JobLoad load_;
  const v1::DeviceKind device_;
  // Widths of the backbone's heads, of query and key heads together, and of its feed-forward part.
  std::uint64_t heads_;
  std::uint64_t q_width_;
  std::uint64_t kv_width_;
  std::uint64_t inner_;
  bool is_opt_;
  std::uint64_t output_width_;  // of what the LM head or a classifier reads
  // The side network's; no layers: there is none, only a head.
  std::uint64_t num_side_layers_;
  std::uint64_t side_hidden_;
  std::uint64_t side_kv_;
  std::uint64_t side_inner_;
};

}  // namespace qst

#endif  // QST_SERVER_MEMORY_NEED_H_
