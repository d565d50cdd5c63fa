#include "worker/side/testing/golden.h"

#include <fstream>

#include "kernels/dtype_convert.h"
#include "proto/support/status_macros.h"

namespace qst {
namespace {

constexpr char kPath[] = "worker/side/testdata/side_network_golden.json";

const nlohmann::json& File() {
  static const nlohmann::json* const file = [] {
    std::ifstream in(kPath);
    QST_CHECK(in.good());
    return new nlohmann::json(nlohmann::json::parse(in));
  }();
  return *file;
}

TestVector<float> ToTestVector(const nlohmann::json& json) {
  const std::vector<float> values = json;
  return TestVector<float>(values.begin(), values.end());
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

}  // namespace

std::vector<std::string> GoldenCase::Names() {
  std::vector<std::string> names;
  for (const auto& item : File()["cases"].items()) names.push_back(item.key());
  return names;
}

GoldenCase::GoldenCase(const std::string& name) : case_(File()["cases"][name]), train_(File()["train"]) {
  const nlohmann::json& file = File();
  BackboneDims dims;
  dims.num_layers = file["backbone"]["num_layers"];
  dims.hidden_size = file["backbone"]["hidden_size"];
  dims.intermediate_size = file["backbone"]["intermediate_size"];
  dims.num_heads = file["backbone"]["num_heads"];
  dims.num_kv_heads = file["backbone"]["num_kv_heads"];
  dims.vocab_size = file["backbone"]["vocab_size"];
  dims.norm_eps = file["backbone"]["norm_eps"];
  dims.rope_theta = file["backbone"]["rope_theta"];
  const bool is_classification = case_["config"]["task"] == "classification";
  auto config = ResolveSideConfig(SideConfigOf(file, case_["config"]),
                                  is_classification ? v1::TASK_TYPE_CLASSIFICATION : v1::TASK_TYPE_CAUSAL_LM,
                                  file["labels"], dims);
  QST_CHECK(config.ok());
  config_ = *config;
  QST_CHECK(config_.hidden_size == file["side"]["hidden_size"]);
  QST_CHECK(config_.intermediate_size == file["side"]["intermediate_size"]);

  final_norm_ = ToTestVector(file["frozen"]["final_norm"]);
  lm_head_ = ToTestVector(file["frozen"]["lm_head"]);
  hidden_f32_ = ToTestVector(file["frozen"]["hidden_states"]);
  for (const float value : hidden_f32_) hidden_bf16_.push_back(F32ToBF16(value));
  const float* norm = final_norm_.data();
  const float* head = lm_head_.data();
  frozen_.final_norm = Matrix(norm, 1, dims.hidden_size);
  frozen_.norm_eps = dims.norm_eps;
  if (!is_classification) frozen_.lm_head = WeightView::Dense(Matrix(head, dims.vocab_size, dims.hidden_size));
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
