#include "worker/side/side_config.h"

#include <string>
#include <vector>

#include "absl/strings/str_replace.h"
#include "gtest/gtest.h"
#include "proto/support/status_matchers.h"
#include "worker/side/parameters.h"

namespace qst {
namespace {

using testing::HasSubstr;

BackboneDims Llama2_7B() {
  BackboneDims dims;
  dims.num_layers = 32;
  dims.hidden_size = 4096;
  dims.intermediate_size = 11008;
  dims.num_heads = 32;
  dims.num_kv_heads = 32;
  dims.vocab_size = 32000;
  return dims;
}

BackboneDims SmolLm() {
  BackboneDims dims;
  dims.num_layers = 30;
  dims.hidden_size = 576;
  dims.intermediate_size = 1536;
  dims.num_heads = 9;
  dims.num_kv_heads = 3;
  dims.vocab_size = 49152;
  dims.rope_theta = 100000.0;
  return dims;
}

SideNetworkConfig MustResolve(const v1::SideConfig& side, const BackboneDims& dims) {
  auto config = ResolveSideConfig(side, v1::TASK_TYPE_CAUSAL_LM, {}, dims);
  QST_EXPECT_OK(config);
  return *config;
}

TEST(SideConfigTest, WidthsAreTheBackbonesDividedByTheReduction) {
  const SideNetworkConfig llama = MustResolve({}, Llama2_7B());
  EXPECT_EQ(llama.hidden_size, 256);
  EXPECT_EQ(llama.head_dim, 8);
  EXPECT_EQ(llama.intermediate_size, 688);
  const SideNetworkConfig smol = MustResolve({}, SmolLm());
  EXPECT_EQ(smol.hidden_size, 36);
  EXPECT_EQ(smol.head_dim, 4);
  EXPECT_EQ(smol.intermediate_size, 96);
}

TEST(SideConfigTest, HeadsNarrowerThanARotaryPairAreWidened) {
  BackboneDims dims = SmolLm();
  dims.hidden_size = 64;
  dims.num_heads = 8;
  dims.num_kv_heads = 4;
  const SideNetworkConfig config = MustResolve({}, dims);
  EXPECT_EQ(config.head_dim, 2);
  EXPECT_EQ(config.hidden_size, 16);
}

TEST(SideConfigTest, PresetsFillWhatIsUnset) {
  v1::SideConfig side;
  EXPECT_EQ(MustResolve(side, SmolLm()).gate_lr_scale, kTunedGateLrScale);
  EXPECT_EQ(MustResolve(side, SmolLm()).mix_init, 1.0);
  EXPECT_TRUE(MustResolve(side, SmolLm()).downsample_norm);
  side.set_preset(v1::SIDE_PRESET_PAPER);
  EXPECT_EQ(MustResolve(side, SmolLm()).gate_lr_scale, 1.0);
  EXPECT_FALSE(MustResolve(side, SmolLm()).downsample_norm);
  side.set_preset(v1::SIDE_PRESET_REFERENCE);
  SideNetworkConfig reference = MustResolve(side, SmolLm());
  EXPECT_TRUE(reference.sigmoid_mix && reference.gate_per_channel && reference.downsample_norm &&
              reference.share_first_downsample);
  EXPECT_EQ(reference.gate_init, 0.5);
  side.set_sigmoid_mix(false);
  side.set_gate_init(0.0);
  reference = MustResolve(side, SmolLm());
  EXPECT_FALSE(reference.sigmoid_mix);
  EXPECT_EQ(reference.gate_init, 0.0);
}

// Share of the downsample modules in all trainable parameters, and of those in the model's.
double DownsampleShare(const SideNetworkConfig& config, double* trainable) {
  double down = 0.0;
  *trainable = 0.0;
  for (const ParameterInfo& info : ParameterLayout(config)) {
    *trainable += info.num_elems();
    if (info.name.find("downsample") != std::string::npos) down += info.num_elems();
  }
  return down / *trainable;
}

TEST(SideConfigTest, ParameterSharesAreThePapers) {
  constexpr double kModel = 6.738e9;
  double trainable = 0.0;
  v1::SideConfig side;
  side.set_preset(v1::SIDE_PRESET_PAPER);
  side.set_share_first_downsample(true);  // as the paper's implementation counts: N modules
  side.set_downsample(v1::DOWNSAMPLE_LINEAR);
  EXPECT_NEAR(DownsampleShare(MustResolve(side, Llama2_7B()), &trainable), 0.56, 0.005);
  side.set_downsample(v1::DOWNSAMPLE_ADAPTER);
  EXPECT_NEAR(DownsampleShare(MustResolve(side, Llama2_7B()), &trainable), 0.078, 0.0005);
  EXPECT_NEAR(trainable / kModel, 0.0041, 0.0002);
  side.set_downsample(v1::DOWNSAMPLE_LORA);
  EXPECT_NEAR(DownsampleShare(MustResolve(side, Llama2_7B()), &trainable), 0.078, 0.0005);
  side.set_downsample(v1::DOWNSAMPLE_AVGPOOL);
  EXPECT_EQ(DownsampleShare(MustResolve(side, Llama2_7B()), &trainable), 0.0);
  EXPECT_NEAR(trainable / kModel, 0.0038, 0.0002);
}

TEST(SideConfigTest, JsonComesBackTheSame) {
  v1::SideConfig side;
  side.set_preset(v1::SIDE_PRESET_REFERENCE);
  side.set_downsample(v1::DOWNSAMPLE_LORA);
  side.set_gate_init(0.1);
  auto config = ResolveSideConfig(side, v1::TASK_TYPE_CLASSIFICATION, {"ham", "\"spam\""}, SmolLm());
  QST_ASSERT_OK(config);
  config->base_model = "smol";
  const std::string json = SideConfigToJson(*config);
  const auto back = SideConfigFromJson(json);
  QST_ASSERT_OK(back);
  EXPECT_EQ(SideConfigToJson(*back), json);
  EXPECT_EQ(back->labels, config->labels);
  EXPECT_EQ(back->backbone.norm_eps, config->backbone.norm_eps);
  EXPECT_THAT(json, HasSubstr("\"gate_orientation\": \"side_state\""));
}

BackboneDims Opt2_7B() {
  BackboneDims dims;
  dims.family = "opt";
  dims.num_layers = 32;
  dims.hidden_size = 2560;
  dims.intermediate_size = 10240;
  dims.num_heads = 32;
  dims.num_kv_heads = 32;
  dims.vocab_size = 50272;
  return dims;
}

TEST(SideConfigTest, HeadsThatAreNotRotatedMayBeOdd) {
  const SideNetworkConfig config = MustResolve({}, Opt2_7B());
  EXPECT_EQ(config.head_dim, 5);
  EXPECT_EQ(config.hidden_size, 160);
  EXPECT_EQ(config.intermediate_size, 640);
}

TEST(SideConfigTest, PresetReferenceIsTheAuthorsForOpt) {
  v1::SideConfig side;
  EXPECT_FALSE(MustResolve(side, Opt2_7B()).mix_weighs_side);
  side.set_preset(v1::SIDE_PRESET_REFERENCE);
  const SideNetworkConfig config = MustResolve(side, Opt2_7B());
  EXPECT_TRUE(config.mix_weighs_side && config.frozen_mlp_norm);
  EXPECT_EQ(config.mix_init, 1.0);
  for (const ParameterInfo& info : ParameterLayout(config)) {
    EXPECT_THAT(info.name, testing::Not(HasSubstr("final_layer_norm.")));
  }
  const auto classifier = ResolveSideConfig(side, v1::TASK_TYPE_CLASSIFICATION, {"a", "b"}, Opt2_7B());
  QST_ASSERT_OK(classifier);
  EXPECT_EQ(classifier->mix_init, 0.0);
  EXPECT_FALSE(MustResolve(side, SmolLm()).mix_weighs_side || MustResolve(side, SmolLm()).frozen_mlp_norm);
}

TEST(SideConfigTest, JsonOfOptComesBackTheSame) {
  BackboneDims dims = Opt2_7B();
  dims.activation = Activation::kGelu;
  dims.is_post_norm = true;
  dims.has_final_norm = false;
  dims.has_bias = false;
  dims.embedding_size = 512;
  v1::SideConfig side;
  side.set_preset(v1::SIDE_PRESET_REFERENCE);
  const std::string json = SideConfigToJson(MustResolve(side, dims));
  const auto back = SideConfigFromJson(json);
  QST_ASSERT_OK(back);
  EXPECT_EQ(SideConfigToJson(*back), json);
  EXPECT_EQ(back->backbone.output_width(), 512);
  EXPECT_TRUE(back->mix_weighs_side && back->backbone.is_post_norm && !back->backbone.has_bias);
  EXPECT_EQ(back->backbone.activation, Activation::kGelu);
  EXPECT_THAT(SideConfigFromJson(absl::StrReplaceAll(json, {{"\"gelu\"", "\"tanh\""}})),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("activation: unknown value \"tanh\"")));
}

TEST(SideConfigTest, RefusesBrokenJsonNamingTheField) {
  const std::string json = SideConfigToJson(MustResolve({}, SmolLm()));
  const auto code = absl::StatusCode::kInvalidArgument;
  EXPECT_THAT(SideConfigFromJson("{"), StatusIs(code, HasSubstr("not a JSON object")));
  EXPECT_THAT(SideConfigFromJson("[]"), StatusIs(code, HasSubstr("not a JSON object")));
  EXPECT_THAT(SideConfigFromJson("{}"), StatusIs(code, HasSubstr("\"format\" is missing")));
  const auto with = [&](const char* from, const char* to) {
    return SideConfigFromJson(absl::StrReplaceAll(json, {{from, to}}));
  };
  EXPECT_THAT(with("\"rank\": 16", "\"rank\": \"x\""), StatusIs(code, HasSubstr("\"rank\" has the wrong type")));
  EXPECT_THAT(with("\"rank\": 16", "\"rank\": 0"), StatusIs(code, HasSubstr("side.rank: 0")));
  EXPECT_THAT(with("\"tuned\"", "\"fancy\""), StatusIs(code, HasSubstr("preset: unknown value \"fancy\"")));
  EXPECT_THAT(with("side_state", "down"), StatusIs(code, HasSubstr("gate_orientation")));
  EXPECT_THAT(with("\"hidden_size\": 36", "\"hidden_size\": 40"), StatusIs(code, HasSubstr("hidden_size 40")));
  EXPECT_THAT(with("\"format_version\": 1", "\"format_version\": 2"), StatusIs(code, HasSubstr("version 2")));
  EXPECT_THAT(with("\"llama\"", "\"gpt\""), StatusIs(absl::StatusCode::kUnimplemented, HasSubstr("gpt")));
}

TEST(SideConfigTest, RefusesImpossibleSettings) {
  const auto code = absl::StatusCode::kInvalidArgument;
  const auto resolve = [](const v1::SideConfig& side) {
    return ResolveSideConfig(side, v1::TASK_TYPE_CAUSAL_LM, {}, SmolLm());
  };
  v1::SideConfig side;
  side.set_reduction(577);
  EXPECT_THAT(resolve(side), StatusIs(code, HasSubstr("side.reduction: 577")));
  side.Clear();
  side.set_gate_lr_scale(-1);
  EXPECT_THAT(resolve(side), StatusIs(code, HasSubstr("gate_lr_scale")));
  side.Clear();
  side.set_mix_init(std::numeric_limits<double>::quiet_NaN());
  EXPECT_THAT(resolve(side), StatusIs(code, HasSubstr("mix_init")));
  side.Clear();
  side.set_preset(v1::SIDE_PRESET_PROBE);
  EXPECT_THAT(resolve(side), StatusIs(code, HasSubstr("probe")));
  EXPECT_THAT(ResolveSideConfig({}, v1::TASK_TYPE_CLASSIFICATION, {"one"}, SmolLm()),
              StatusIs(code, HasSubstr("at least 2 labels")));
  BackboneDims dims = SmolLm();
  dims.num_kv_heads = 2;
  EXPECT_THAT(ResolveSideConfig({}, v1::TASK_TYPE_CAUSAL_LM, {}, dims), StatusIs(code, HasSubstr("impossible")));
}

}  // namespace
}  // namespace qst
