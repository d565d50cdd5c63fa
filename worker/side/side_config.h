// What a side network is, with every width worked out: made from a job's SideConfig and the backbone's dimensions,
// and stored beside the trained parameters as side_config.json.
#ifndef QST_WORKER_SIDE_SIDE_CONFIG_H_
#define QST_WORKER_SIDE_SIDE_CONFIG_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kernels/ops.h"
#include "proto/qst/v1/job_spec.pb.h"

namespace qst {

// Learning-rate multiplier of gates and output mix in preset tuned: the fastest of those measured.
inline constexpr double kTunedGateLrScale = 30.0;

enum class NormKind : std::uint8_t { kNone, kRms, kLayer };

// What the side network needs to know of the backbone.
struct BackboneDims {
  std::string family = "llama";
  std::int64_t num_layers = 0;   // N
  std::int64_t hidden_size = 0;  // d
  std::int64_t intermediate_size = 0;
  std::int64_t num_heads = 0;
  std::int64_t num_kv_heads = 0;
  std::int64_t vocab_size = 0;
  float norm_eps = 1e-5f;
  double rope_theta = 10000.0;  // family llama; side layers do not stretch it
  // e, width of the LM head's rows and of what a classifier reads. 0: hidden_size.
  std::int64_t embedding_size = 0;

  // Family opt.
  Activation activation = Activation::kRelu;
  bool has_bias = true;         // linear layers
  bool is_post_norm = false;    // norms follow attention and feed-forward part
  bool has_norm_affine = true;  // norms have weight and bias
  bool has_final_norm = true;

  bool is_opt() const { return family == "opt"; }
  std::int64_t output_width() const { return embedding_size == 0 ? hidden_size : embedding_size; }
  // Of the last norm: the backbone's, and the side network's before the upsample layer.
  NormKind final_norm() const {
    return !is_opt() ? NormKind::kRms : has_final_norm ? NormKind::kLayer : NormKind::kNone;
  }
};

struct SideNetworkConfig {
  // The backbone that it belongs to.
  std::string base_model;  // name in the model store; informative
  BackboneDims backbone;

  // The task.
  v1::TaskType task = v1::TASK_TYPE_CAUSAL_LM;
  std::vector<std::string> labels;  // classification: in class order

  // Widths. Same number of heads as the backbone; the head width is d / (reduction * num_heads) rounded up, in family
  // llama to an even number, because the rotary embedding turns pairs; the hidden size ds follows from it. The
  // intermediate size is divided by the reduction and rounded up to a multiple of 8. So r = 16 on d = 4096, 32 heads
  // gives heads of 8 and ds = 256 as in the paper, and a model too narrow for r gets heads of 2.
  std::int64_t hidden_size = 0;  // ds
  std::int64_t head_dim = 0;
  std::int64_t intermediate_size = 0;

  // The fields of SideConfig, resolved.
  v1::SidePreset preset = v1::SIDE_PRESET_TUNED;
  std::int64_t reduction = 16;
  v1::Downsample downsample = v1::DOWNSAMPLE_ADAPTER;
  std::int64_t rank = 16;
  double gate_lr_scale = 1.0;
  double gate_init = 0.0;
  bool gate_per_channel = false;
  double mix_init = 1.0;
  bool sigmoid_mix = false;
  bool downsample_norm = false;
  bool share_first_downsample = false;
  bool upsample_bias = true;
  // Set by preset reference for family opt alone, as the authors' code has it.
  bool frozen_mlp_norm = false;  // the second norm of a side layer has no weight and bias
  bool mix_weighs_side = false;  // the output mix multiplies the side network's part, not the backbone's

  // What the names of tensors begin with that are not the head's, as in the authors' modules.
  const char* model_prefix() const { return backbone.is_opt() ? "model.decoder." : "model."; }
  const char* final_norm_name() const { return backbone.is_opt() ? "final_layer_norm_qst" : "norm_qst"; }
  // Preset probe has only a head.
  bool has_side_network() const { return preset != v1::SIDE_PRESET_PROBE; }
  bool is_classification() const { return task == v1::TASK_TYPE_CLASSIFICATION; }
  bool is_regression() const { return task == v1::TASK_TYPE_REGRESSION; }
  // Its own head in place of the backbone's: a score for each class, or the number.
  bool has_score_head() const { return is_classification() || is_regression(); }
  std::int64_t num_classes() const { return static_cast<std::int64_t>(labels.size()); }
  std::int64_t num_scores() const { return is_regression() ? 1 : num_classes(); }
  // The first hidden state that the network reads: 0, or N for a probe.
  std::int64_t first_layer() const { return has_side_network() ? 0 : backbone.num_layers; }
  // Modules: one per state h_f[0..N], or N where h_f[0] shares the one of h_f[1].
  std::int64_t num_downsample_modules() const {
    return share_first_downsample ? backbone.num_layers : backbone.num_layers + 1;
  }
  // The module that reads h_f[layer].
  std::int64_t downsample_module(std::int64_t layer) const {
    return share_first_downsample ? (layer == 0 ? 0 : layer - 1) : layer;
  }
};

// Fills what `side` leaves unset from its preset and works out the widths.
// kInvalidArgument: a value out of range, a preset that does not fit the task; the message names the field.
// kUnimplemented: backbone family.
absl::StatusOr<SideNetworkConfig> ResolveSideConfig(const v1::SideConfig& side, v1::TaskType task,
                                                    const std::vector<std::string>& labels,
                                                    const BackboneDims& backbone);

// The linear probe beside a network: the same head, without the side network below it.
SideNetworkConfig ProbeOf(SideNetworkConfig config);

// side_config.json: every field above under its own name (those of family opt only for it), and the orientation of the
// gates ("gate_orientation": "side_state" means that beta multiplies the side state, as in the paper).
std::string SideConfigToJson(const SideNetworkConfig& config);
// kInvalidArgument: not JSON, a field missing, of the wrong type or out of range.
absl::StatusOr<SideNetworkConfig> SideConfigFromJson(absl::string_view json);

}  // namespace qst

#endif  // QST_WORKER_SIDE_SIDE_CONFIG_H_
