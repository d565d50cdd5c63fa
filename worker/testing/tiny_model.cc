#include "worker/testing/tiny_model.h"

#include <stdlib.h>

#include <cmath>
#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"
#include "proto/support/status_macros.h"
#include "worker/checkpoint/file_io.h"
#include "worker/checkpoint/safetensors_writer.h"

namespace qst {
namespace {

// SplitMix64: the same numbers on every platform.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}
  std::uint64_t Next() {
    std::uint64_t z = (state_ += 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
  }
  // Sum of 12 uniforms: close enough to a normal distribution, and free of library functions.
  float Normal() {
    double sum = -6.0;
    for (int i = 0; i < 12; ++i) sum += static_cast<double>(Next() >> 11) * 0x1.0p-53;
    return static_cast<float>(sum);
  }

 private:
  std::uint64_t state_;
};

// GPT-2's byte alphabet: printable bytes stand for themselves, the others for code points from 256 on.
std::string ByteSymbol(int byte) {
  const auto is_printable = [](int b) { return (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174; };
  int code_point = byte;
  if (!is_printable(byte)) {
    code_point = 256;
    for (int b = 0; b < byte; ++b) code_point += is_printable(b) ? 0 : 1;
  }
  if (code_point < 0x80) return std::string(1, static_cast<char>(code_point));
  return {static_cast<char>(0xc0 | (code_point >> 6)), static_cast<char>(0x80 | (code_point & 0x3f))};
}

std::string TokenizerJson() {
  nlohmann::json vocab;
  for (int byte = 0; byte < 256; ++byte) vocab[ByteSymbol(byte)] = byte;
  vocab["<s>"] = 256;
  vocab["</s>"] = 257;
  const auto special = [](int id, const char* text) {
    return nlohmann::json{{"id", id},        {"content", text},     {"single_word", false}, {"lstrip", false},
                          {"rstrip", false}, {"normalized", false}, {"special", true}};
  };
  nlohmann::json tokenizer = {
      {"version", "1.0"},
      {"truncation", nullptr},
      {"padding", nullptr},
      {"added_tokens", {special(256, "<s>"), special(257, "</s>")}},
      {"normalizer", nullptr},
      {"pre_tokenizer",
       {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", true}}},
      {"post_processor", nullptr},
      {"decoder", {{"type", "ByteLevel"}, {"add_prefix_space", true}, {"trim_offsets", true}, {"use_regex", true}}},
      {"model",
       {{"type", "BPE"},
        {"dropout", nullptr},
        {"unk_token", nullptr},
        {"continuing_subword_prefix", nullptr},
        {"end_of_word_suffix", nullptr},
        {"fuse_unk", false},
        {"byte_fallback", false},
        {"vocab", vocab},
        {"merges", nlohmann::json::array()}}}};
  return tokenizer.dump();
}

}  // namespace

ModelConfig TinyLlamaConfig() {
  ModelConfig config;
  config.vocab_size = 258;
  config.hidden_size = 32;
  config.intermediate_size = 48;
  config.num_layers = 3;
  config.num_heads = 4;
  config.num_kv_heads = 2;
  config.head_dim = 8;
  config.max_position_embeddings = 128;
  config.norm_eps = 1e-5;
  config.bos_token_id = 256;
  config.eos_token_ids = {257};
  return config;
}

ModelConfig TinyOptConfig(bool post_norm) {
  ModelConfig config = TinyLlamaConfig();
  config.family = ModelFamily::kOpt;
  config.architecture = "OPTForCausalLM";
  config.model_type = "opt";
  config.num_kv_heads = config.num_heads;
  config.tie_word_embeddings = true;
  config.attention_bias = true;
  config.attention_out_bias = true;
  config.mlp_bias = true;
  config.is_post_norm = post_norm;
  config.embedding_size = post_norm ? 16 : 0;
  return config;
}

TinyModel MakeTinyModel(const ModelConfig& config, std::uint64_t seed) {
  TinyModel model;
  model.config = config;
  Random random(seed);
  for (const ModelTensor& tensor : ModelTensors(config)) {
    std::vector<float> values(tensor.num_elems());
    float scale = 0.1f;
    float offset = 0.0f;
    if (tensor.kind == ModelTensor::Kind::kNorm) {
      offset = 1.0f;
    } else if (tensor.shape.size() == 2) {
      const bool is_embedding = tensor.kind == ModelTensor::Kind::kEmbedding;
      scale = is_embedding ? 1.0f : 1.0f / std::sqrt(static_cast<float>(tensor.shape[1]));
    }
    for (float& value : values) value = offset + scale * random.Normal();
    model.tensors[tensor.name] = std::move(values);
  }
  return model;
}

absl::Status WriteTinyModel(const TinyModel& model, const std::string& folder) {
  std::vector<SafetensorsEntry> entries;
  for (const ModelTensor& tensor : ModelTensors(model.config)) {
    entries.push_back({tensor.name, DType::kF32, tensor.shape, model.tensors.at(tensor.name).data()});
  }
  QST_RETURN_IF_ERROR(WriteSafetensors(folder + "/model.safetensors", entries, {{"format", "pt"}}));
  QST_RETURN_IF_ERROR(WriteFileAtomically(folder + "/config.json", ModelConfigToJson(model.config, "")));
  return WriteTinyTokenizer(folder);
}

absl::Status WriteTinyTokenizer(const std::string& folder) {
  QST_RETURN_IF_ERROR(WriteFileAtomically(folder + "/tokenizer.json", TokenizerJson()));
  return WriteFileAtomically(folder + "/tokenizer_config.json",
                             R"({"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": false})");
}

std::string MakeTestFolder(const std::string& name) {
  const char* root = std::getenv("TEST_TMPDIR");
  std::string pattern = absl::StrCat(root != nullptr ? root : "/tmp", "/", name, ".XXXXXX");
  QST_CHECK(mkdtemp(pattern.data()) != nullptr);
  return pattern;
}

}  // namespace qst
