#include "worker/checkpoint/model_config.h"

#include <cmath>
#include <limits>
#include <string>

#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "proto/support/status_matchers.h"

namespace qst {
namespace {

using Json = nlohmann::json;
using testing::HasSubstr;

Json GoodConfig() {
  return Json{{"architectures", {"LlamaForCausalLM"}},
              {"model_type", "llama"},
              {"vocab_size", 512},
              {"hidden_size", 64},
              {"intermediate_size", 172},
              {"num_hidden_layers", 5},
              {"num_attention_heads", 8},
              {"num_key_value_heads", 4},
              {"max_position_embeddings", 512},
              {"rms_norm_eps", 1e-5},
              {"rope_theta", 10000},
              {"tie_word_embeddings", true},
              {"bos_token_id", 1},
              {"eos_token_id", {2, 3}},
              {"torch_dtype", "bfloat16"}};
}

absl::StatusOr<ModelConfig> Parse(const Json& json) { return ParseModelConfig(json.dump(), "config.json"); }

absl::StatusOr<ModelConfig> ParseWith(const char* field, const Json& value) {
  Json json = GoodConfig();
  json[field] = value;
  return Parse(json);
}

TEST(ModelConfigTest, ReadsEveryField) {
  const auto config = Parse(GoodConfig());
  QST_ASSERT_OK(config);
  EXPECT_EQ(config->vocab_size, 512);
  EXPECT_EQ(config->hidden_size, 64);
  EXPECT_EQ(config->intermediate_size, 172);
  EXPECT_EQ(config->num_layers, 5);
  EXPECT_EQ(config->num_heads, 8);
  EXPECT_EQ(config->num_kv_heads, 4);
  EXPECT_EQ(config->head_dim, 8);  // hidden_size / heads, when not given
  EXPECT_EQ(config->max_position_embeddings, 512);
  EXPECT_EQ(config->norm_eps, 1e-5);
  EXPECT_EQ(config->rope_theta, 10000.0);
  EXPECT_TRUE(config->tie_word_embeddings);
  EXPECT_EQ(config->bos_token_id, 1);
  EXPECT_EQ(config->eos_token_ids, (std::vector<std::int64_t>{2, 3}));
  EXPECT_EQ(config->pad_token_id, std::nullopt);
  EXPECT_EQ(config->torch_dtype, "bfloat16");
}

TEST(ModelConfigTest, AbsentAndNullFieldsHaveHuggingFaceDefaults) {
  Json json = GoodConfig();
  for (const char* field :
       {"num_key_value_heads", "rms_norm_eps", "tie_word_embeddings", "bos_token_id", "eos_token_id"}) {
    json[field] = nullptr;
  }
  json.erase("rope_theta");
  const auto config = Parse(json);
  QST_ASSERT_OK(config);
  EXPECT_EQ(config->num_kv_heads, 8);
  EXPECT_EQ(config->norm_eps, 1e-6);
  EXPECT_EQ(config->rope_theta, 10000.0);
  EXPECT_FALSE(config->tie_word_embeddings);
  EXPECT_TRUE(config->eos_token_ids.empty());
}

TEST(ModelConfigTest, WritingAndReadingGivesTheSameConfig) {
  Json json = GoodConfig();
  json["head_dim"] = 16;
  json["attention_bias"] = true;
  json["rope_scaling"] = Json{{"rope_type", "llama3"},
                              {"factor", 8.0},
                              {"low_freq_factor", 1.0},
                              {"high_freq_factor", 4.0},
                              {"original_max_position_embeddings", 8192}};
  const auto first = Parse(json);
  QST_ASSERT_OK(first);
  const std::string text = ModelConfigToJson(*first, "");
  const auto second = ParseModelConfig(text, "again");
  QST_ASSERT_OK(second);
  EXPECT_EQ(ModelConfigToJson(*second, ""), text);
  EXPECT_EQ(second->head_dim, 16);
  EXPECT_TRUE(second->attention_bias);
  EXPECT_EQ(second->rope_scaling.type, RopeScalingType::kLlama3);
  EXPECT_EQ(second->rope_scaling.factor, 8.0);
}

TEST(ModelConfigTest, AModelQuantizedInAnotherWayIsReadOnlyFromTheStore) {
  const auto config = Parse(GoodConfig());
  QST_ASSERT_OK(config);
  const std::string text = ModelConfigToJson(*config, R"({"quant_method":"gptq"})");
  EXPECT_THAT(ParseModelConfig(text, "c"), StatusIs(absl::StatusCode::kUnimplemented, HasSubstr("'gptq'")));
  QST_EXPECT_OK(ParseStoredModelConfig(text, "c"));
  // 4-bit weights of this kind are stored as they are.
  QST_EXPECT_OK(ParseModelConfig(ModelConfigToJson(*config, R"({"quant_method":"bitsandbytes"})"), "c"));
}

TEST(ModelConfigTest, MistralHasAWindowInEveryLayer) {
  Json json = GoodConfig();
  json["architectures"] = {"MistralForCausalLM"};
  json["model_type"] = "mistral";
  json["sliding_window"] = nullptr;
  auto config = Parse(json);
  QST_ASSERT_OK(config);
  EXPECT_EQ(config->WindowOf(0), 0);
  json["sliding_window"] = 100;
  config = Parse(json);
  QST_ASSERT_OK(config);
  EXPECT_EQ(config->WindowOf(0), 100);
  EXPECT_EQ(config->WindowOf(4), 100);
  const auto again = ParseModelConfig(ModelConfigToJson(*config, ""), "again");
  QST_ASSERT_OK(again);
  EXPECT_EQ(again->architecture, "MistralForCausalLM");
  EXPECT_EQ(again->WindowOf(4), 100);
  json["sliding_window"] = 0;
  EXPECT_THAT(Parse(json), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("sliding_window is 0")));
}

TEST(ModelConfigTest, LlamaHasNoWindow) {
  QST_EXPECT_OK(ParseWith("sliding_window", 512));
  EXPECT_THAT(ParseWith("sliding_window", 511),
              StatusIs(absl::StatusCode::kUnimplemented, HasSubstr("sliding window of 511")));
}

Json Qwen2Config() {
  Json json = GoodConfig();
  json["architectures"] = {"Qwen2ForCausalLM"};
  json["model_type"] = "qwen2";
  json["sliding_window"] = 64;
  return json;
}

TEST(ModelConfigTest, Qwen2HasBiasesOfQueriesKeysAndValuesAlone) {
  const auto config = Parse(Qwen2Config());
  QST_ASSERT_OK(config);
  EXPECT_TRUE(config->attention_bias);
  EXPECT_FALSE(config->attention_out_bias);
  EXPECT_FALSE(config->mlp_bias);
  EXPECT_EQ(config->sliding_window, 0);  // use_sliding_window is not set
  EXPECT_EQ(ModelTensors(*config).size(), 2u + 5 * (9 + 3));
}

TEST(ModelConfigTest, Qwen2HasWindowsInUpperLayers) {
  Json json = Qwen2Config();
  json["use_sliding_window"] = true;
  json["max_window_layers"] = 3;
  auto config = Parse(json);
  QST_ASSERT_OK(config);
  EXPECT_EQ(config->WindowOf(2), 0);
  EXPECT_EQ(config->WindowOf(3), 64);
  const std::string text = ModelConfigToJson(*config, "");
  EXPECT_EQ(ModelConfigToJson(*ParseModelConfig(text, "again"), ""), text);
  const std::string full = "full_attention", sliding = "sliding_attention";
  json["layer_types"] = {full, sliding, sliding, sliding, sliding};
  config = Parse(json);
  QST_ASSERT_OK(config);
  EXPECT_EQ(config->first_window_layer, 1);
  json["layer_types"] = {full, sliding, full, sliding, sliding};
  EXPECT_THAT(Parse(json), StatusIs(absl::StatusCode::kUnimplemented, HasSubstr("layer 2 is 'full_attention'")));
  json["layer_types"] = {full};
  EXPECT_THAT(Parse(json), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("layer_types has 1 entries")));
}

Json OptConfig() {
  return Json{{"architectures", {"OPTForCausalLM"}},
              {"model_type", "opt"},
              {"vocab_size", 50272},
              {"hidden_size", 1024},
              {"ffn_dim", 4096},
              {"num_hidden_layers", 24},
              {"num_attention_heads", 16},
              {"max_position_embeddings", 2048},
              {"word_embed_proj_dim", 512},
              {"do_layer_norm_before", false},
              {"pad_token_id", 1}};
}

TEST(ModelConfigTest, Opt350MIsReadAndWritten) {
  const auto config = Parse(OptConfig());
  QST_ASSERT_OK(config);
  EXPECT_EQ(config->family, ModelFamily::kOpt);
  EXPECT_EQ(config->head_dim, 64);
  EXPECT_EQ(config->position_rows(), 2050);
  EXPECT_EQ(config->embedding_width(), 512);
  EXPECT_TRUE(config->is_post_norm);
  EXPECT_FALSE(config->has_final_norm());
  EXPECT_TRUE(config->tie_word_embeddings);
  EXPECT_TRUE(config->mlp_bias);
  // 331,196,416 is what its published file holds.
  EXPECT_EQ(config->NumParameters(), 331'196'416);
  const OuterTensorNames names = OuterTensors(*config);
  EXPECT_EQ(names.final_norm, "");
  EXPECT_EQ(names.head, "model.decoder.embed_tokens.weight");
  const std::string text = ModelConfigToJson(*config, "");
  const auto again = ParseModelConfig(text, "again");
  QST_ASSERT_OK(again);
  EXPECT_EQ(ModelConfigToJson(*again, ""), text);
}

TEST(ModelConfigTest, Opt125MHasNoProjectionsButAFinalNorm) {
  Json json = OptConfig();
  json["hidden_size"] = 768;
  json["ffn_dim"] = 3072;
  json["num_hidden_layers"] = 12;
  json["num_attention_heads"] = 12;
  json["word_embed_proj_dim"] = 768;
  json["do_layer_norm_before"] = true;
  const auto config = Parse(json);
  QST_ASSERT_OK(config);
  EXPECT_FALSE(config->has_projections());
  EXPECT_TRUE(config->has_final_norm());
  EXPECT_EQ(config->NumParameters(), 125'239'296);
  json["activation_function"] = "gelu_new";
  EXPECT_THAT(Parse(json), StatusIs(absl::StatusCode::kUnimplemented, HasSubstr("'gelu_new'")));
  json["activation_function"] = "relu";
  json["num_attention_heads"] = 7;
  EXPECT_THAT(Parse(json), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("no multiple")));
}

TEST(ModelConfigTest, OtherArchitecturesAreNamedWithTheSupportedOnes) {
  EXPECT_THAT(ParseWith("architectures", {"GPT2LMHeadModel"}),
              StatusIs(absl::StatusCode::kUnimplemented,
                       testing::AllOf(HasSubstr("'GPT2LMHeadModel'"), HasSubstr("LlamaForCausalLM"))));
  Json json = GoodConfig();
  json.erase("architectures");
  QST_EXPECT_OK(Parse(json));  // model_type speaks for it
  json["model_type"] = "phi";
  EXPECT_THAT(Parse(json), StatusIs(absl::StatusCode::kUnimplemented, HasSubstr("'phi'")));
  json.erase("model_type");
  EXPECT_THAT(Parse(json), StatusIs(absl::StatusCode::kUnimplemented, HasSubstr("none named")));
}

TEST(ModelConfigTest, WhatWouldComputeSomethingElseIsRefused) {
  EXPECT_THAT(ParseWith("hidden_act", "gelu"), StatusIs(absl::StatusCode::kUnimplemented, HasSubstr("'gelu'")));
  EXPECT_THAT(ParseWith("partial_rotary_factor", 0.5), StatusIs(absl::StatusCode::kUnimplemented));
  EXPECT_THAT(ParseWith("rope_scaling", Json{{"type", "yarn"}, {"factor", 2.0}}),
              StatusIs(absl::StatusCode::kUnimplemented, HasSubstr("'yarn'")));
}

TEST(ModelConfigTest, BadFieldsAreNamed) {
  const struct {
    const char* field;
    Json value;
    const char* message;
  } cases[] = {
      {"vocab_size", 0, "vocab_size is 0"},
      {"vocab_size", -3, "vocab_size is -3"},
      {"vocab_size", "512", "'vocab_size' must be an integer"},
      {"vocab_size", 512.5, "'vocab_size' must be an integer"},
      {"vocab_size", nullptr, "'vocab_size' is missing"},
      {"vocab_size", 18446744073709551615ull, "'vocab_size' must be an integer"},
      {"hidden_size", std::int64_t{1} << 40, "hidden_size is 1099511627776"},
      {"hidden_size", 65, "hidden_size 65 is no multiple of num_attention_heads 8"},
      {"num_hidden_layers", std::numeric_limits<std::int64_t>::max(), "num_hidden_layers"},
      {"num_attention_heads", 0, "num_attention_heads 0"},
      {"num_key_value_heads", 3, "no multiple of num_key_value_heads 3"},
      {"num_key_value_heads", 16, "num_key_value_heads is 16"},
      {"head_dim", 7, "head_dim is 7"},
      {"rms_norm_eps", 0.0, "norm eps is 0"},
      {"rms_norm_eps", "small", "'rms_norm_eps' must be a number"},
      {"rope_theta", 0.5, "rope_theta"},
      {"rope_theta", -1, "rope_theta"},
      {"tie_word_embeddings", 1, "'tie_word_embeddings' must be true or false"},
      {"eos_token_id", "</s>", "'eos_token_id'"},
      {"eos_token_id", Json::array({1, "x"}), "'eos_token_id'"},
      {"bos_token_id", 1 << 30, "bos_token_id"},
      {"rope_scaling", 3, "'rope_scaling' must be an object"},
      {"rope_scaling", Json{{"type", "linear"}, {"factor", 0.0}}, "factor"},
      {"rope_scaling", Json{{"type", "llama3"}, {"low_freq_factor", 4}, {"high_freq_factor", 4}}, "high_freq_factor"},
  };
  for (const auto& c : cases) {
    EXPECT_THAT(ParseWith(c.field, c.value), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(c.message)))
        << c.field << " " << c.value;
  }
}

TEST(ModelConfigTest, WhatIsNoJsonObjectIsRefused) {
  for (const std::string& text :
       {std::string(), std::string("{"), std::string("[]"), std::string("nonsense"), std::string(100'000, '[')}) {
    EXPECT_THAT(ParseModelConfig(text, "c.json"),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("c.json is not a JSON object")));
  }
}

TEST(ModelConfigTest, NewRopeParametersAreRead) {
  Json json = GoodConfig();
  json.erase("rope_theta");
  json["rope_parameters"] = Json{{"rope_type", "default"}, {"rope_theta", 130000.0}};
  const auto config = Parse(json);
  QST_ASSERT_OK(config);
  EXPECT_EQ(config->rope_theta, 130000.0);
  EXPECT_EQ(config->rope_scaling.type, RopeScalingType::kNone);
}

TEST(ModelConfigTest, DynamicRopeScalingIsOfTheContextItself) {
  Json json = GoodConfig();
  json["rope_scaling"] = Json{{"type", "dynamic"}, {"factor", 2.0}};
  const auto config = Parse(json);
  QST_ASSERT_OK(config);
  EXPECT_EQ(config->rope_scaling.type, RopeScalingType::kDynamic);
  json["rope_scaling"]["original_max_position_embeddings"] = 256;
  EXPECT_THAT(Parse(json), StatusIs(absl::StatusCode::kUnimplemented, HasSubstr("original_max_position_embeddings")));
}

TEST(RotaryInverseFrequenciesTest, FollowTheFormula) {
  ModelConfig config;
  config.head_dim = 4;
  config.rope_theta = 10000.0;
  EXPECT_EQ(RotaryInverseFrequencies(config), (std::vector<float>{1.0f, 0.01f}));
  config.rope_scaling = {RopeScalingType::kLinear, 4.0};
  EXPECT_EQ(RotaryInverseFrequencies(config), (std::vector<float>{0.25f, 0.0025f}));
  config.rope_scaling = {RopeScalingType::kDynamic, 4.0};
  EXPECT_EQ(RotaryInverseFrequencies(config), (std::vector<float>{1.0f, 0.01f}));
}

TEST(RotaryInverseFrequenciesTest, Llama3KeepsShortWavesAndStretchesLongOnes) {
  ModelConfig config;
  config.head_dim = 128;
  config.rope_theta = 500000.0;
  const std::vector<float> plain = RotaryInverseFrequencies(config);
  config.rope_scaling = {RopeScalingType::kLlama3, 8.0, 1.0, 4.0, 8192};
  const std::vector<float> scaled = RotaryInverseFrequencies(config);
  int num_kept = 0, num_stretched = 0, num_between = 0;
  for (std::size_t j = 0; j < plain.size(); ++j) {
    const double wavelength = 2 * M_PI / plain[j];
    if (wavelength < 8192 / 4.0) {
      ++num_kept;
      EXPECT_EQ(scaled[j], plain[j]);
    } else if (wavelength > 8192 / 1.0) {
      ++num_stretched;
      EXPECT_FLOAT_EQ(scaled[j], plain[j] / 8);
    } else {
      ++num_between;
      EXPECT_LT(scaled[j], plain[j]);
      EXPECT_GT(scaled[j], plain[j] / 8);
    }
  }
  EXPECT_GT(num_kept, 0);
  EXPECT_GT(num_between, 0);
  EXPECT_GT(num_stretched, 0);
}

TEST(ModelTensorsTest, CountsParametersOfKnownModels) {
  auto config = Parse(GoodConfig());
  QST_ASSERT_OK(config);
  EXPECT_EQ(config->NumParameters(), 260'032);  // stories260K
  ModelConfig smollm2;
  smollm2.vocab_size = 49152;
  smollm2.hidden_size = 576;
  smollm2.intermediate_size = 1536;
  smollm2.num_layers = 30;
  smollm2.num_heads = 9;
  smollm2.num_kv_heads = 3;
  smollm2.head_dim = 64;
  smollm2.tie_word_embeddings = true;
  EXPECT_EQ(smollm2.NumParameters(), 134'515'008);
}

TEST(ModelTensorsTest, BiasesAndHeadFollowTheConfig) {
  auto config = Parse(GoodConfig());
  QST_ASSERT_OK(config);
  const std::size_t plain = ModelTensors(*config).size();
  EXPECT_EQ(plain, 2u + 5 * 9);
  config->attention_bias = true;
  config->attention_out_bias = true;
  config->mlp_bias = true;
  config->tie_word_embeddings = false;
  const auto tensors = ModelTensors(*config);
  EXPECT_EQ(tensors.size(), plain + 1 + 5 * 7);
  EXPECT_EQ(tensors.back().name, "lm_head.weight");
}

}  // namespace
}  // namespace qst
