#include "worker/side/testing/golden.h"

#include <fstream>

#include "kernels/dtype_convert.h"
#include "proto/support/status_macros.h"

namespace qst {
namespace {

constexpr const char* kPaths[] = {"worker/side/testdata/side_network_golden.json",
                                  "worker/side/testdata/opt_side_network_golden.json"};

const std::vector<nlohmann::json>& Files() {
  static const auto* const files = [] {
    auto* const all = new std::vector<nlohmann::json>;
    for (const char* path : kPaths) {
      std::ifstream in(path);
      QST_CHECK(in.good());
      all->push_back(nlohmann::json::parse(in));
    }
    return all;
  }();
  return *files;
}

// The one that has the case.
const nlohmann::json& FileOf(const std::string& name) {
  for (const nlohmann::json& file : Files()) {
    if (file["cases"].contains(name)) return file;
  }
  QST_CHECK(false);
  return Files().front();
}

TestVector<float> ToTestVector(const nlohmann::json& json) {
  const std::vector<float> values = json;
  return TestVector<float>(values.begin(), values.end());
}

ConstMatrixView View(const TestVector<float>& values, std::int64_t rows, std::int64_t cols) {
  QST_CHECK(static_cast<std::int64_t>(values.size()) == rows * cols);
  return Matrix(values.data(), rows, cols);
}

v1::SideConfig SideConfigOf(const nlohmann::json& file, const nlohmann::json& config) {
  static const std::map<std::string, v1::SidePreset> presets = {{"paper", v1::SIDE_PRESET_PAPER},
                                                                {"tuned", v1::SIDE_PRESET_TUNED},
                                                                {"reference", v1::SIDE_PRESET_REFERENCE},
                                                                {"probe", v1::SIDE_PRESET_PROBE}};
  static const std::map<std::string, v1::Downsample> kinds = {{"adapter", v1::DOWNSAMPLE_ADAPTER},
                                                              {"lora", v1::DOWNSAMPLE_LORA},
                                                              {"linear", v1::DOWNSAMPLE_LINEAR},
                                                              {"maxpool", v1::DOWNSAMPLE_MAXPOOL},
                                                              {"avgpool", v1::DOWNSAMPLE_AVGPOOL}};
  v1::SideConfig side;
  side.set_preset(presets.at(config["preset"]));
  side.set_downsample(kinds.at(config["downsample"]));
  side.set_reduction(file["side"]["reduction"]);
  side.set_rank(file["side"]["rank"]);
  // Preset reference leaves its own fields to the resolution under test.
  if (side.preset() == v1::SIDE_PRESET_REFERENCE) return side;
  side.set_gate_lr_scale(config["gate_lr_scale"]);
  side.set_gate_init(config["gate_init"]);
  side.set_mix_init(config["mix_init"]);
  side.set_sigmoid_mix(config["sigmoid_mix"]);
  side.set_downsample_norm(config["downsample_norm"]);
  side.set_upsample_bias(config["upsample_bias"]);
  return side;
}

// What an OPT case's configuration says of its backbone.
void SetOptDims(const nlohmann::json& opt, BackboneDims* dims) {
  dims->family = opt["family"];
  dims->activation = opt["activation"] == "gelu" ? Activation::kGelu : Activation::kRelu;
  dims->has_bias = opt["has_bias"];
  dims->is_post_norm = opt["is_post_norm"];
  dims->has_norm_affine = opt["has_norm_affine"];
  dims->has_final_norm = opt["has_final_norm"];
  dims->embedding_size = opt["embedding_size"];
}

}  // namespace

std::vector<std::string> GoldenCase::Names() {
  std::vector<std::string> names;
  for (const nlohmann::json& file : Files()) {
    for (const auto& item : file["cases"].items()) names.push_back(item.key());
  }
  return names;
}

GoldenCase::GoldenCase(const std::string& name) : case_(FileOf(name)["cases"][name]), train_(FileOf(name)["train"]) {
  const nlohmann::json& file = FileOf(name);
  const bool is_opt = case_["config"].contains("backbone");
  BackboneDims dims;
  dims.num_layers = file["backbone"]["num_layers"];
  dims.hidden_size = file["backbone"]["hidden_size"];
  dims.intermediate_size = file["backbone"]["intermediate_size"];
  dims.num_heads = file["backbone"]["num_heads"];
  dims.num_kv_heads = file["backbone"]["num_kv_heads"];
  dims.vocab_size = file["backbone"]["vocab_size"];
  dims.norm_eps = file["backbone"]["norm_eps"];
  if (is_opt) {
    SetOptDims(case_["config"]["backbone"], &dims);
  } else {
    dims.rope_theta = file["backbone"]["rope_theta"];
  }
  const bool is_classification = case_["config"]["task"] == "classification";
  auto config = ResolveSideConfig(SideConfigOf(file, case_["config"]),
                                  is_classification ? v1::TASK_TYPE_CLASSIFICATION : v1::TASK_TYPE_CAUSAL_LM,
                                  file["labels"], dims);
  QST_CHECK(config.ok());
  config_ = *config;
  QST_CHECK(config_.hidden_size == file["side"]["hidden_size"]);
  QST_CHECK(config_.head_dim == file["side"]["head_dim"]);
  QST_CHECK(config_.intermediate_size == file["side"]["intermediate_size"]);

  final_norm_ = ToTestVector(file["frozen"]["final_norm"]);
  lm_head_ = ToTestVector(file["frozen"]["lm_head"]);
  hidden_f32_ = ToTestVector(file["frozen"]["hidden_states"]);
  for (const float value : hidden_f32_) hidden_bf16_.push_back(F32ToBF16(value));
  frozen_.norm = dims.final_norm();
  frozen_.norm_eps = dims.norm_eps;
  if (frozen_.norm == NormKind::kRms || (frozen_.norm == NormKind::kLayer && dims.has_norm_affine)) {
    frozen_.final_norm = View(final_norm_, 1, dims.hidden_size);
  }
  if (frozen_.norm == NormKind::kLayer && dims.has_norm_affine) {
    final_norm_bias_ = ToTestVector(file["frozen"]["final_norm_bias"]);
    frozen_.final_norm_bias = View(final_norm_bias_, 1, dims.hidden_size);
  }
  if (dims.output_width() != dims.hidden_size) {
    projection_ = ToTestVector(file["frozen"]["projection"]);
    lm_head_ = ToTestVector(file["frozen"]["projected_lm_head"]);
    frozen_.projection = WeightView::Dense(View(projection_, dims.output_width(), dims.hidden_size));
  }
  if (!is_classification) {
    frozen_.lm_head = WeightView::Dense(View(lm_head_, dims.vocab_size, dims.output_width()));
  }
  batch_.offsets = file["offsets"].get<std::vector<std::int32_t>>();
  batch_.rows = case_["rows"].get<std::vector<std::int32_t>>();
  batch_.targets = case_["targets"].get<std::vector<std::int32_t>>();
}

HiddenStateSource GoldenCase::HiddenStates(DType dtype) const {
  const std::int64_t rows = batch_.num_tokens();
  const std::int64_t cols = config_.backbone.hidden_size;
  return [=](std::int64_t layer) -> absl::StatusOr<ConstMatrixView> {
    const void* data = hidden_f32_.data() + layer * rows * cols;
    if (dtype == DType::kBF16) data = hidden_bf16_.data() + layer * rows * cols;
    return ConstMatrixView(data, dtype, rows, cols, cols);
  };
}

void GoldenCase::LoadParameters(Parameters* parameters) const {
  QST_CHECK(parameters->layout().size() == case_["parameters"].size());
  for (const ParameterInfo& info : parameters->layout()) {
    const std::vector<float> values = case_["parameters"][info.name]["value"];
    QST_CHECK(static_cast<std::int64_t>(values.size()) == info.num_elems());
    QST_CHECK(parameters->Upload(ParameterBuffer::kValues, info, values.data()).ok());
  }
}

}  // namespace qst
