#include "worker/side/parameters.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"
#include "proto/support/status_macros.h"
#include "worker/side/random.h"

namespace qst {
namespace {

constexpr std::int64_t kAlignFloats = 16;

std::int64_t Bytes(std::int64_t num_floats) { return num_floats * static_cast<std::int64_t>(sizeof(float)); }

class LayoutBuilder {
 public:
  void Weight(std::string name, std::int64_t rows, std::int64_t cols) {
    ParameterInfo info;
    info.name = std::move(name);
    info.shape = {rows, cols};
    info.fan_in = cols;
    tensors_.push_back(std::move(info));
  }
  // A bias as nn.Linear starts it: by the fan-in of its weight.
  void Bias(std::string name, std::int64_t size, std::int64_t fan_in) {
    Vector(std::move(name), size, ParameterGroup::kNormsAndBiases, ParameterInit::kKaimingUniform, 0.0f);
    tensors_.back().fan_in = fan_in;
  }
  void Norm(const std::string& name, std::int64_t size, bool has_bias) {
    Vector(name + ".weight", size, ParameterGroup::kNormsAndBiases, ParameterInit::kOnes, 0.0f);
    if (has_bias) Vector(name + ".bias", size, ParameterGroup::kNormsAndBiases, ParameterInit::kZeros, 0.0f);
  }
  void Gate(std::string name, std::int64_t size, double start) {
    Vector(std::move(name), size, ParameterGroup::kGates, ParameterInit::kConstant, static_cast<float>(start));
  }

  std::vector<ParameterInfo> Finish() {
    std::stable_sort(tensors_.begin(), tensors_.end(),
                     [](const ParameterInfo& a, const ParameterInfo& b) { return a.group < b.group; });
    std::int64_t offset = 0;
    for (ParameterInfo& info : tensors_) {
      info.offset = offset;
      offset += (info.num_elems() + kAlignFloats - 1) / kAlignFloats * kAlignFloats;
    }
    return std::move(tensors_);
  }

 private:
  void Vector(std::string name, std::int64_t size, ParameterGroup group, ParameterInit init, float constant) {
    ParameterInfo info;
    info.name = std::move(name);
    info.shape = {size};
    info.group = group;
    info.init = init;
    info.constant = constant;
    tensors_.push_back(std::move(info));
  }

  std::vector<ParameterInfo> tensors_;
};

void AddDownsample(const SideNetworkConfig& config, std::int64_t module, LayoutBuilder* builder) {
  const std::string prefix = absl::StrCat(config.model_prefix(), "downsample.", module);
  const std::int64_t d = config.backbone.hidden_size;
  const std::int64_t ds = config.hidden_size;
  switch (config.downsample) {
    case v1::DOWNSAMPLE_ADAPTER:
      builder->Weight(prefix + ".adapter_A.weight", config.rank, d);
      builder->Weight(prefix + ".adapter_B.weight", ds, config.rank);
      break;
    case v1::DOWNSAMPLE_LORA:
      builder->Weight(prefix + ".lora_A.weight", config.rank, d);
      builder->Weight(prefix + ".lora_B.weight", ds, config.rank);
      break;
    case v1::DOWNSAMPLE_LINEAR:
      builder->Weight(prefix + ".weight", ds, d);
      break;
    default:  // Poolings have no parameters.
      break;
  }
  if (config.downsample_norm) builder->Norm(prefix + ".post_layer_norm", ds, /*has_bias=*/true);
}

void AddOptSideLayer(const SideNetworkConfig& config, const std::string& prefix, LayoutBuilder* builder) {
  const std::int64_t ds = config.hidden_size;
  const bool has_affine = config.backbone.has_norm_affine;
  const auto linear = [&](const char* name, std::int64_t rows, std::int64_t cols) {
    builder->Weight(prefix + name + ".weight", rows, cols);
    if (config.backbone.has_bias) builder->Bias(prefix + name + ".bias", rows, /*fan_in=*/cols);
  };
  if (has_affine) builder->Norm(prefix + "self_attn_layer_norm", ds, /*has_bias=*/true);
  linear("self_attn.q_proj", ds, ds);
  linear("self_attn.k_proj", ds, ds);
  linear("self_attn.v_proj", ds, ds);
  linear("self_attn.out_proj", ds, ds);
  if (has_affine && !config.frozen_mlp_norm) builder->Norm(prefix + "final_layer_norm", ds, /*has_bias=*/true);
  linear("fc1", config.intermediate_size, ds);
  linear("fc2", ds, config.intermediate_size);
}

void AddSideLayer(const SideNetworkConfig& config, std::int64_t layer, LayoutBuilder* builder) {
  const std::string prefix = absl::StrCat(config.model_prefix(), "qst_layers.", layer, ".");
  if (config.backbone.is_opt()) return AddOptSideLayer(config, prefix, builder);
  const std::int64_t ds = config.hidden_size;
  const std::int64_t kv = config.head_dim * config.backbone.num_kv_heads;
  const std::int64_t inner = config.intermediate_size;
  builder->Norm(prefix + "input_layernorm", ds, /*has_bias=*/false);
  builder->Weight(prefix + "self_attn.q_proj.weight", ds, ds);
  builder->Weight(prefix + "self_attn.k_proj.weight", kv, ds);
  builder->Weight(prefix + "self_attn.v_proj.weight", kv, ds);
  builder->Weight(prefix + "self_attn.o_proj.weight", ds, ds);
  builder->Norm(prefix + "post_attention_layernorm", ds, /*has_bias=*/false);
  builder->Weight(prefix + "mlp.gate_proj.weight", inner, ds);
  builder->Weight(prefix + "mlp.up_proj.weight", inner, ds);
  builder->Weight(prefix + "mlp.down_proj.weight", ds, inner);
}

}  // namespace

std::vector<ParameterInfo> ParameterLayout(const SideNetworkConfig& config) {
  LayoutBuilder builder;
  const std::int64_t e = config.backbone.output_width();
  const std::int64_t ds = config.hidden_size;
  if (config.has_side_network()) {
    for (std::int64_t i = 0; i < config.num_downsample_modules(); ++i) AddDownsample(config, i, &builder);
    for (std::int64_t i = 0; i < config.backbone.num_layers; ++i) {
      builder.Gate(absl::StrCat(config.model_prefix(), "z.", i), config.gate_per_channel ? ds : 1, config.gate_init);
      AddSideLayer(config, i, &builder);
    }
    const NormKind norm = config.backbone.final_norm();
    if (norm == NormKind::kRms || (norm == NormKind::kLayer && config.backbone.has_norm_affine)) {
      builder.Norm(absl::StrCat(config.model_prefix(), config.final_norm_name()), ds, norm == NormKind::kLayer);
    }
    builder.Weight("upsample.weight", e, ds);
    if (config.upsample_bias) builder.Bias("upsample.bias", e, /*fan_in=*/ds);
    builder.Gate(config.has_score_head() ? "score_z" : "lm_head_z", config.sigmoid_mix ? e : 1, config.mix_init);
  }
  if (config.has_score_head()) builder.Weight("score.weight", config.num_scores(), e);
  return builder.Finish();
}

absl::StatusOr<std::unique_ptr<Parameters>> Parameters::Create(const OpContext& ctx,
                                                               std::vector<ParameterInfo> layout) {
  auto parameters = absl::WrapUnique(new Parameters(ctx, std::move(layout)));
  for (DeviceMemory& buffer : parameters->buffers_) {
    QST_ASSIGN_OR_RETURN(buffer, DeviceMemory::Allocate(ctx, Bytes(parameters->size_)));
    QST_RETURN_IF_ERROR(FillZero(ctx, buffer.data(), buffer.size_bytes()));
  }
  return parameters;
}

Parameters::Parameters(const OpContext& ctx, std::vector<ParameterInfo> layout)
    : ctx_(ctx), layout_(std::move(layout)) {
  int group = -1;
  for (int i = 0; i < static_cast<int>(layout_.size()); ++i) {
    const ParameterInfo& info = layout_[i];
    QST_CHECK(index_.emplace(info.name, i).second);
    size_ = info.offset + (info.num_elems() + kAlignFloats - 1) / kAlignFloats * kAlignFloats;
    if (static_cast<int>(info.group) != group) {
      group = static_cast<int>(info.group);
      ranges_[group].begin = info.offset;
    }
    ranges_[group].end = size_;
  }
}

Parameters::~Parameters() { Synchronize(ctx_).IgnoreError(); }

absl::Status Parameters::Initialise(std::uint64_t seed) {
  std::vector<float> tensor;
  for (const ParameterInfo& info : layout_) {
    tensor.resize(static_cast<std::size_t>(info.num_elems()));
    switch (info.init) {
      case ParameterInit::kKaimingUniform: {
        Random random(seed, info.name);
        const float bound = 1.0f / std::sqrt(static_cast<float>(info.fan_in));
        for (float& value : tensor) value = random.Symmetric(bound);
        break;
      }
      case ParameterInit::kOnes:
        std::fill(tensor.begin(), tensor.end(), 1.0f);
        break;
      case ParameterInit::kZeros:
        std::fill(tensor.begin(), tensor.end(), 0.0f);
        break;
      case ParameterInit::kConstant:
        std::fill(tensor.begin(), tensor.end(), info.constant);
        break;
    }
    QST_RETURN_IF_ERROR(Upload(ParameterBuffer::kValues, info, tensor.data()));
  }
  for (const ParameterBuffer buffer :
       {ParameterBuffer::kGradients, ParameterBuffer::kExpAvg, ParameterBuffer::kExpAvgSq}) {
    QST_RETURN_IF_ERROR(FillZero(ctx_, data(buffer), Bytes(size_)));
  }
  return absl::OkStatus();
}

absl::Status Parameters::ZeroGradients() { return FillZero(ctx_, data(ParameterBuffer::kGradients), Bytes(size_)); }

const ParameterInfo* Parameters::Find(absl::string_view name) const {
  const auto it = index_.find(std::string(name));
  return it == index_.end() ? nullptr : &layout_[it->second];
}

MatrixView Parameters::View(ParameterBuffer buffer, absl::string_view name) {
  const ParameterInfo* info = Find(name);
  QST_CHECK(info != nullptr);
  return Matrix(data(buffer) + info->offset, info->rows(), info->cols());
}

MatrixView Parameters::Value(absl::string_view name) { return View(ParameterBuffer::kValues, name); }
MatrixView Parameters::Gradient(absl::string_view name) { return View(ParameterBuffer::kGradients, name); }

std::int64_t Parameters::num_trainable() const {
  std::int64_t total = 0;
  for (const ParameterInfo& info : layout_) total += info.num_elems();
  return total;
}

absl::Status Parameters::Upload(ParameterBuffer buffer, const ParameterInfo& info, const void* host) {
  return qst::Upload(ctx_, host, Bytes(info.num_elems()), data(buffer) + info.offset);
}

absl::Status Parameters::Download(ParameterBuffer buffer, const ParameterInfo& info, void* host) const {
  return qst::Download(ctx_, data(buffer) + info.offset, Bytes(info.num_elems()), host);
}

absl::StatusOr<std::vector<float>> Parameters::Download(ParameterBuffer buffer) const {
  std::vector<float> out(static_cast<std::size_t>(size_));
  QST_RETURN_IF_ERROR(qst::Download(ctx_, data(buffer), Bytes(size_), out.data()));
  return out;
}

}  // namespace qst
