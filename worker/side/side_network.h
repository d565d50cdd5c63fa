// The side network: reads the hidden states of a frozen backbone and learns the task. Forward and backward by hand.
//
//   h_g[0] = down_0(h_f[0])
//   h_g[i] = SideLayer_i((1 - b_i) down_i(h_f[i]) + b_i h_g[i-1]),  b_i = sigmoid(z_i)      i = 1 ... N
//   then the head (head.h)
#ifndef QST_WORKER_SIDE_SIDE_NETWORK_H_
#define QST_WORKER_SIDE_SIDE_NETWORK_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/device.h"
#include "kernels/device_memory.h"
#include "kernels/tensor.h"
#include "worker/side/arena.h"
#include "worker/side/downsample.h"
#include "worker/side/graph_cache.h"
#include "worker/side/head.h"
#include "worker/side/parameters.h"
#include "worker/side/predictions.h"
#include "worker/side/side_batch.h"
#include "worker/side/side_config.h"
#include "worker/side/side_layer.h"

namespace qst {

// Gives h_f[layer] [T, d] (f32, f16 or bf16, in the device's memory) of the micro-batch, waiting for it if need be.
// Asked in ascending order from first_layer() on; views must stay valid until all that the call that asked has enqueued
// is done.
using HiddenStateSource = std::function<absl::StatusOr<ConstMatrixView>(std::int64_t layer)>;
// Sees h_g[layer] [T, ds] in the device's memory, layer 0 to N; valid during the call, as far as it reads in the
// network's own context.
using SideStateSink = std::function<void(std::int64_t layer, const ConstMatrixView& side_state)>;

// All its memory is the device's, and all its work is enqueued in one context: on CUDA no call waits for the device
// unless it says so, but for the first micro-batch that needs more memory than those before. Parameters, activations
// and gradients are float32 on every backend, so the loss needs no scaling.
//
// Not thread-safe. Results depend on neither the number of threads nor the instruction set's availability of other
// calls: the ops' one reduction order holds here too.
class SideNetwork {
 public:
  // What `ctx` and `frozen` point to must outlive the network. Parameters hold their start values for `seed`.
  // kInvalidArgument: the frozen head does not fit the configuration. kResourceExhausted: out of memory.
  static absl::StatusOr<std::unique_ptr<SideNetwork>> Create(const OpContext& ctx, SideNetworkConfig config,
                                                             const FrozenHead& frozen, std::uint64_t seed);
  // Waits for enqueued work.
  ~SideNetwork();

  // On CUDA: from now on AccumulateGradients launches the layers' work as graphs where shapes of micro-batches repeat.
  // So that they do, they are rounded up (RoundedShapeOf) to at most max_tokens tokens, which what was reserved of the
  // device's memory must have room for. No bit of a result changes. Nothing happens on CPU, and with QST_CUDA_GRAPHS=0.
  void UseGraphs(std::int64_t max_tokens);

  // Forward only. `sink`, if given, sees the side states.
  absl::Status Evaluate(const SideBatch& batch, const HiddenStateSource& hidden_states,
                        const SideStateSink& sink = nullptr);

  // Forward and backward: adds the gradient of grad_scale * (sum of losses) to the parameters' gradients.
  absl::Status AccumulateGradients(const SideBatch& batch, const HiddenStateSource& hidden_states, float grad_scale,
                                   const SideStateSink& sink = nullptr);

  // What the newest of these two calls predicted; waits for it.
  absl::StatusOr<Predictions> FetchPredictions() const { return predictions_.Fetch(ctx_); }

  // After AccumulateGradients gave a loss that is not a number or infinite: the first place that holds such a value,
  // as "the backbone's hidden state of layer 3", "side layer 4", "the output". The hidden states must still be there.
  std::string DescribeNonFinite() const;

  const SideNetworkConfig& config() const { return config_; }
  const FrozenHead& frozen_head() const { return frozen_; }
  Parameters& parameters() { return *parameters_; }
  const Parameters& parameters() const { return *parameters_; }
  // Views into the parameters, by layer (1 ... N) and for the head; for generation.
  const SideLayerTensors& layer_values(std::int64_t layer) const { return layer_values_[layer - 1]; }
  const MatrixView& gate_value(std::int64_t layer) const { return gate_values_[layer - 1]; }
  const DownsampleTensors& downsample_values(std::int64_t layer) const {
    return downsample_values_[config_.downsample_module(layer)];
  }
  const HeadTensors& head_values() const { return head_values_; }
  const float* inv_freq() const { return inv_freq_.as<float>(); }  // [head_dim / 2]
  std::int64_t arena_bytes() const { return arena_.capacity_bytes(); }
  const GraphStats& graph_stats() const { return graphs_.stats(); }

 private:
  // One layer's part of the forward pass.
  struct LayerActivations {
    DownsampleActivations down;
    MatrixView side_before;  // h_g[i-1]
    MatrixView mixed;        // layer input
    SideLayerActivations layer;
  };

  SideNetwork(const OpContext& ctx, SideNetworkConfig config, const FrozenHead& frozen,
              std::unique_ptr<Parameters> parameters);
  // Checks the batch and takes it, and room for what is predicted, into the arena, which is emptied before.
  absl::StatusOr<DeviceBatch> Begin(const SideBatch& batch, bool want_grad);
  SideSequences SequencesOf(const DeviceBatch& batch) const {
    return {batch.offsets, batch.positions, inv_freq_.as<float>()};
  }
  absl::StatusOr<ConstMatrixView> FetchState(const HiddenStateSource& hidden_states, std::int64_t layer,
                                             std::int64_t num_tokens) const;
  // Memory for a layer's part, and what of it reads the hidden state; rows beyond the hidden state's become zeros.
  // `before` is h_g[layer - 1] [num_rows, ds].
  absl::Status BeginLayer(std::int64_t layer, const ConstMatrixView& hidden_state, const MatrixView& before,
                          LayerActivations* acts);
  // The rest: downsampling, gate, side layer.
  absl::Status FinishLayer(std::int64_t layer, const SideSequences& sequences, const LayerActivations& acts);
  // Keeps the activations; the last states go to `args`. The layers have num_rows rows, the hidden states the first
  // num_tokens of them.
  absl::Status ForwardLayers(const HiddenStateSource& hidden_states, const SideSequences& sequences,
                             std::int64_t num_rows, std::int64_t num_tokens, const SideStateSink& sink, HeadArgs* args);
  // From the gradient of h_g[N] on; grad_other is room for another such matrix.
  absl::Status BackwardLayers(const SideSequences& sequences, MatrixView grad_last, MatrixView grad_other);
  // What of the layers' backward pass reads no hidden state.
  absl::Status BackwardThroughLayers(const SideSequences& sequences, MatrixView grad, MatrixView grad_before);
  absl::Status RunHead(const HeadArgs& args);
  absl::StatusOr<bool> IsFinite(const ConstMatrixView& matrix) const;
  // The places in the order in which a token meets them.
  std::vector<std::pair<std::string, ConstMatrixView>> Places() const;

  const OpContext ctx_;
  SideNetworkConfig config_;
  FrozenHead frozen_;
  const std::unique_ptr<Parameters> parameters_;
  std::vector<DownsampleTensors> downsample_values_, downsample_gradients_;  // by module
  std::vector<SideLayerTensors> layer_values_, layer_gradients_;             // by layer - 1
  std::vector<MatrixView> gate_values_, gate_gradients_;                     // by layer - 1
  HeadTensors head_values_, head_gradients_;
  DeviceMemory inv_freq_;

  Arena arena_;
  GraphCache graphs_;
  std::int64_t graph_max_tokens_ = 0;  // 0: no graphs
  PredictionBuffer predictions_;
  DownsampleActivations first_down_;           // of h_f[0]
  std::vector<LayerActivations> activations_;  // by layer - 1
  ConstMatrixView backbone_last_;
  bool has_activations_ = false;
};

}  // namespace qst

#endif  // QST_WORKER_SIDE_SIDE_NETWORK_H_
