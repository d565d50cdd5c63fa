#include "worker/checkpoint/gguf_model.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <optional>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "proto/support/status_macros.h"

namespace qst {
namespace {

// Metadata stores float32 values such as 1e-5; as a double that is 9.99999974e-06. The shortest decimal that
// means the same float32 is what the model's authors wrote.
double ShortestDecimal(double value) {
  const float wanted = static_cast<float>(value);
  char text[64];
  for (int digits = 1; digits <= 9; ++digits) {
    std::snprintf(text, sizeof(text), "%.*g", digits, static_cast<double>(wanted));
    const double candidate = std::strtod(text, nullptr);
    if (static_cast<float>(candidate) == wanted) return candidate;
  }
  return value;
}

// The Hugging Face name of a tensor. Empty if there is none.
std::string HuggingFaceName(absl::string_view name, std::int64_t num_layers) {
  if (name == "token_embd.weight") return "model.embed_tokens.weight";
  if (name == "output_norm.weight") return "model.norm.weight";
  if (name == "output.weight") return "lm_head.weight";
  if (name.substr(0, 4) != "blk.") return "";
  name.remove_prefix(4);
  const std::size_t dot = name.find('.');
  std::int64_t layer = -1;
  if (dot == absl::string_view::npos || !absl::SimpleAtoi(name.substr(0, dot), &layer) || layer < 0 ||
      layer >= num_layers) {
    return "";
  }
  const absl::string_view part = name.substr(dot + 1);
  struct Row {
    const char* ggml;
    const char* huggingface;
    bool may_have_bias;
  };
  static constexpr Row kRows[] = {
      {"attn_norm", "input_layernorm", false},   {"attn_q", "self_attn.q_proj", true},
      {"attn_k", "self_attn.k_proj", true},      {"attn_v", "self_attn.v_proj", true},
      {"attn_output", "self_attn.o_proj", true}, {"ffn_norm", "post_attention_layernorm", false},
      {"ffn_gate", "mlp.gate_proj", true},       {"ffn_up", "mlp.up_proj", true},
      {"ffn_down", "mlp.down_proj", true},
  };
  for (const Row& row : kRows) {
    if (part == absl::StrCat(row.ggml, ".weight"))
      return absl::StrCat("model.layers.", layer, ".", row.huggingface, ".weight");
    if (row.may_have_bias && part == absl::StrCat(row.ggml, ".bias")) {
      return absl::StrCat("model.layers.", layer, ".", row.huggingface, ".bias");
    }
  }
  return "";
}

bool EndsWith(absl::string_view text, absl::string_view end) {
  return text.size() >= end.size() && text.substr(text.size() - end.size()) == end;
}

// A token id of the metadata, or nothing.
absl::StatusOr<std::optional<std::int32_t>> TokenId(const GgufFile& file, absl::string_view name,
                                                    std::size_t num_tokens) {
  const std::string key = absl::StrCat("tokenizer.ggml.", name);
  QST_ASSIGN_OR_RETURN(const std::optional<std::int64_t> id, file.Int(key));
  // Files write the largest 32-bit number for "none".
  if (!id.has_value() || *id == std::numeric_limits<std::uint32_t>::max() || *id == -1) {
    return std::optional<std::int32_t>();
  }
  if (*id < 0 || static_cast<std::uint64_t>(*id) >= num_tokens) {
    return absl::InvalidArgumentError(
        absl::StrCat(file.path(), ": metadata '", key, "' is ", *id, ", there are ", num_tokens, " tokens"));
  }
  return std::optional<std::int32_t>(static_cast<std::int32_t>(*id));
}

// Lists that go with the tokens must be as long as these, or absent.
template <typename T>
absl::Status CheckLength(const GgufFile& file, absl::string_view key, const std::optional<std::vector<T>>& list,
                         std::size_t num_tokens) {
  if (!list.has_value() || list->size() == num_tokens) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(file.path(), ": metadata '", key, "' has ", list->size(),
                                                 " entries, there are ", num_tokens, " tokens"));
}

}  // namespace

absl::StatusOr<TokenizerDefinition> ReadGgufTokenizer(const GgufFile& file) {
  TokenizerDefinition definition;
  QST_ASSIGN_OR_RETURN(const std::optional<std::string> model, file.String("tokenizer.ggml.model"));
  QST_ASSIGN_OR_RETURN(auto tokens, file.Strings("tokenizer.ggml.tokens"));
  if (!model.has_value() || !tokens.has_value() || tokens->empty()) {
    return absl::NotFoundError(
        absl::StrCat(file.path(), ": the file holds no tokenizer (tokenizer.ggml.model and tokens)"));
  }
  if (*model == "gpt2") {
    definition.kind = TokenizerDefinition::Kind::kByteLevelBpe;
  } else if (*model == "llama") {
    definition.kind = TokenizerDefinition::Kind::kSentencePieceBpe;
  } else {
    return absl::UnimplementedError(
        absl::StrCat(file.path(), ": tokenizer '", *model, "' is not supported ('gpt2' and 'llama' are)"));
  }
  const bool is_byte_level = definition.kind == TokenizerDefinition::Kind::kByteLevelBpe;
  const std::size_t num_tokens = tokens->size();
  definition.tokens = std::move(*tokens);

  QST_ASSIGN_OR_RETURN(const auto types, file.Ints("tokenizer.ggml.token_type"));
  QST_RETURN_IF_ERROR(CheckLength(file, "tokenizer.ggml.token_type", types, num_tokens));
  if (types.has_value()) {
    for (const std::int64_t type : *types) {
      if (type < 1 || type > 6) {
        return absl::InvalidArgumentError(
            absl::StrCat(file.path(), ": metadata 'tokenizer.ggml.token_type' holds ", type, ", 1 to 6 are known"));
      }
      definition.token_types.push_back(static_cast<TokenizerDefinition::TokenType>(type));
    }
  }
  QST_ASSIGN_OR_RETURN(const auto scores, file.Floats("tokenizer.ggml.scores"));
  QST_RETURN_IF_ERROR(CheckLength(file, "tokenizer.ggml.scores", scores, num_tokens));
  if (scores.has_value()) {
    for (const double score : *scores) definition.scores.push_back(static_cast<float>(score));
  }
  QST_ASSIGN_OR_RETURN(auto merges, file.Strings("tokenizer.ggml.merges"));
  if (merges.has_value()) definition.merges = std::move(*merges);
  QST_ASSIGN_OR_RETURN(const auto pre_tokenizer, file.String("tokenizer.ggml.pre"));
  definition.pre_tokenizer = pre_tokenizer.value_or("default");

  QST_ASSIGN_OR_RETURN(definition.bos_id, TokenId(file, "bos_token_id", num_tokens));
  QST_ASSIGN_OR_RETURN(definition.eos_id, TokenId(file, "eos_token_id", num_tokens));
  QST_ASSIGN_OR_RETURN(definition.unk_id, TokenId(file, "unknown_token_id", num_tokens));
  QST_ASSIGN_OR_RETURN(definition.pad_id, TokenId(file, "padding_token_id", num_tokens));
  QST_ASSIGN_OR_RETURN(const auto add_bos, file.Bool("tokenizer.ggml.add_bos_token"));
  QST_ASSIGN_OR_RETURN(const auto add_eos, file.Bool("tokenizer.ggml.add_eos_token"));
  QST_ASSIGN_OR_RETURN(const auto add_space, file.Bool("tokenizer.ggml.add_space_prefix"));
  definition.add_bos = add_bos.value_or(!is_byte_level);
  definition.add_eos = add_eos.value_or(false);
  definition.add_space_prefix = add_space.value_or(!is_byte_level);
  QST_ASSIGN_OR_RETURN(const auto chat_template, file.String("tokenizer.chat_template"));
  definition.chat_template = chat_template.value_or("");
  return definition;
}

absl::StatusOr<std::unique_ptr<GgufModel>> GgufModel::Create(std::unique_ptr<GgufFile> file) {
  std::unique_ptr<GgufModel> model(new GgufModel(std::move(file)));
  QST_RETURN_IF_ERROR(model->ReadFamily());
  QST_RETURN_IF_ERROR(model->ReadConfig());
  QST_RETURN_IF_ERROR(model->MapTensors());
  return model;
}

absl::Status GgufModel::ReadFamily() {
  QST_ASSIGN_OR_RETURN(const auto architecture, file_->String("general.architecture"));
  std::string known;
  for (const FamilyDefinition* family : AllFamilies()) {
    if (family->gguf_architecture == nullptr) continue;
    if (architecture == family->gguf_architecture) family_ = family;
    absl::StrAppend(&known, known.empty() ? "'" : ", '", family->gguf_architecture, "'");
  }
  if (family_ == nullptr) {
    return absl::UnimplementedError(absl::StrCat(file_->path(), ": architecture '", architecture.value_or("none named"),
                                                 "' is not supported in GGUF files (", known, " are)"));
  }
  config_.family = family_->layers;
  config_.architecture = family_->architecture;
  config_.model_type = family_->model_type;
  return absl::OkStatus();
}

absl::Status GgufModel::ReadRope() {
  const std::string& path = file_->path();
  const std::string prefix = absl::StrCat(family_->gguf_architecture, ".rope.");
  QST_ASSIGN_OR_RETURN(const auto rotary_dims, file_->Int(prefix + "dimension_count"));
  if (rotary_dims.value_or(config_.head_dim) != config_.head_dim) {
    return absl::UnimplementedError(absl::StrCat(path, ": rotary embedding on ", *rotary_dims, " of ", config_.head_dim,
                                                 " channels is not supported"));
  }
  QST_ASSIGN_OR_RETURN(const auto scaling_type, file_->String(prefix + "scaling.type"));
  QST_ASSIGN_OR_RETURN(const auto scaling_factor, file_->Float(prefix + "scaling.factor"));
  QST_ASSIGN_OR_RETURN(const auto old_linear_factor, file_->Float(prefix + "scale_linear"));
  if (scaling_type.has_value() && *scaling_type != "none" && *scaling_type != "linear") {
    return absl::UnimplementedError(absl::StrCat(path, ": rotary scaling '", *scaling_type, "' is not supported"));
  }
  const double factor = scaling_type == "none" ? 1.0 : scaling_factor.value_or(old_linear_factor.value_or(1.0));
  if (factor != 1.0) {
    config_.rope_scaling.type = RopeScalingType::kLinear;
    config_.rope_scaling.factor = ShortestDecimal(factor);
  }
  QST_ASSIGN_OR_RETURN(const auto theta, file_->Float(prefix + "freq_base"));
  config_.rope_theta = ShortestDecimal(theta.value_or(10000.0));
  return absl::OkStatus();
}

absl::Status GgufModel::ReadConfig() {
  const std::string& path = file_->path();
  const std::string prefix = absl::StrCat(family_->gguf_architecture, ".");
  const auto need = [&](const char* name) -> absl::StatusOr<std::int64_t> {
    const std::string key = prefix + name;
    if (file_->IsArray(key)) {
      return absl::UnimplementedError(
          absl::StrCat(path, ": metadata '", key, "' differs from layer to layer, which is not supported"));
    }
    QST_ASSIGN_OR_RETURN(const std::optional<std::int64_t> value, file_->Int(key));
    if (!value.has_value()) return absl::InvalidArgumentError(absl::StrCat(path, ": metadata '", key, "' is missing"));
    return *value;
  };
  QST_ASSIGN_OR_RETURN(config_.hidden_size, need("embedding_length"));
  QST_ASSIGN_OR_RETURN(config_.num_layers, need("block_count"));
  QST_ASSIGN_OR_RETURN(config_.intermediate_size, need("feed_forward_length"));
  QST_ASSIGN_OR_RETURN(config_.num_heads, need("attention.head_count"));
  QST_ASSIGN_OR_RETURN(config_.max_position_embeddings, need("context_length"));
  config_.num_kv_heads = config_.num_heads;
  QST_ASSIGN_OR_RETURN(const auto kv_heads, file_->Int(prefix + "attention.head_count_kv"));
  if (kv_heads.has_value()) config_.num_kv_heads = *kv_heads;

  QST_ASSIGN_OR_RETURN(const auto experts, file_->Int(prefix + "expert_count"));
  if (experts.value_or(0) != 0) {
    return absl::UnimplementedError(absl::StrCat(path, ": a mixture of ", *experts, " experts is not supported"));
  }
  QST_ASSIGN_OR_RETURN(const auto window, file_->Int(prefix + "attention.sliding_window"));
  if (window.value_or(0) > 0 && *window < config_.max_position_embeddings) {
    return absl::UnimplementedError(absl::StrCat(path, ": a sliding window of ", *window,
                                                 " tokens is not supported in GGUF files; import the Hugging Face "
                                                 "folder of this model"));
  }
  QST_ASSIGN_OR_RETURN(const auto key_length, file_->Int(prefix + "attention.key_length"));
  QST_ASSIGN_OR_RETURN(const auto value_length, file_->Int(prefix + "attention.value_length"));
  if (key_length.has_value()) {
    config_.head_dim = *key_length;
  } else if (config_.num_heads > 0 && config_.hidden_size % config_.num_heads == 0) {
    config_.head_dim = config_.hidden_size / config_.num_heads;
  } else {
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", prefix, "embedding_length ", config_.hidden_size,
                                                   " is no multiple of ", prefix, "attention.head_count ",
                                                   config_.num_heads));
  }
  if (value_length.value_or(config_.head_dim) != config_.head_dim) {
    return absl::UnimplementedError(absl::StrCat(path, ": heads of ", config_.head_dim, " for keys but ", *value_length,
                                                 " for values are not supported"));
  }
  QST_RETURN_IF_ERROR(ReadRope());
  const std::string eps_key = prefix + "attention.layer_norm_rms_epsilon";
  QST_ASSIGN_OR_RETURN(const auto eps, file_->Float(eps_key));
  if (!eps.has_value()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": metadata '", eps_key, "' is missing"));
  }
  config_.norm_eps = ShortestDecimal(*eps);

  // What the metadata leave to the tensors.
  config_.tie_word_embeddings = true;
  for (const GgufTensor& tensor : file_->tensors()) {
    if (tensor.name == "output.weight") config_.tie_word_embeddings = false;
    if (tensor.name == "token_embd.weight" && tensor.dims.size() == 2) config_.vocab_size = tensor.dims[1];
    if (tensor.name == "blk.0.attn_q.bias") config_.attention_bias = true;
    if (tensor.name == "blk.0.attn_output.bias") config_.attention_out_bias = true;
    if (tensor.name == "blk.0.ffn_gate.bias") config_.mlp_bias = true;
  }
  if (config_.vocab_size == 0) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": no tensor 'token_embd.weight' of two dimensions"));
  }
  const auto token = [&](const char* name) -> absl::StatusOr<std::optional<std::int64_t>> {
    QST_ASSIGN_OR_RETURN(
        const auto id, TokenId(*file_, name, static_cast<std::size_t>(std::max<std::int64_t>(config_.vocab_size, 0))));
    return id.has_value() ? std::optional<std::int64_t>(*id) : std::nullopt;
  };
  QST_ASSIGN_OR_RETURN(config_.bos_token_id, token("bos_token_id"));
  QST_ASSIGN_OR_RETURN(config_.pad_token_id, token("padding_token_id"));
  QST_ASSIGN_OR_RETURN(const auto eos, token("eos_token_id"));
  if (eos.has_value()) config_.eos_token_ids = {*eos};
  config_.torch_dtype = "float16";
  QST_RETURN_IF_ERROR(ValidateModelConfig(config_, path));
  // As the config.json that an import writes will be read.
  QST_ASSIGN_OR_RETURN(config_, ParseModelConfig(ModelConfigToJson(config_, ""), path));
  return absl::OkStatus();
}

absl::Status GgufModel::CheckRopeFactors(const GgufTensor& tensor) const {
  std::vector<float> factors(static_cast<std::size_t>(tensor.dims[0]));
  ReadRowPart(tensor, 0, 0, tensor.dims[0], factors.data());
  if (std::any_of(factors.begin(), factors.end(), [](float f) { return f != 1.0f; })) {
    return absl::UnimplementedError(
        absl::StrCat(file_->path(),
                     ": rotary frequencies scaled by the tensor 'rope_freqs.weight' are not supported in GGUF files; "
                     "import the Hugging Face folder of this model"));
  }
  return absl::OkStatus();
}

absl::Status GgufModel::MapTensors() {
  for (const GgufTensor& tensor : file_->tensors()) {
    if (tensor.name == "rope_freqs.weight") {
      QST_RETURN_IF_ERROR(CheckRopeFactors(tensor));
      continue;
    }
    const std::string name = HuggingFaceName(tensor.name, config_.num_layers);
    if (name.empty()) {
      return absl::UnimplementedError(absl::StrCat(file_->path(), ": a ", config_.model_type,
                                                   " model has no tensor like '", tensor.name,
                                                   "'; this is another kind of model"));
    }
    Entry entry;
    entry.tensor = &tensor;
    entry.info.shape.assign(tensor.dims.rbegin(), tensor.dims.rend());
    entry.info.num_elems = tensor.num_elems;
    entry.info.encoding = GgmlTypeName(static_cast<std::uint32_t>(tensor.type));
    switch (tensor.type) {
      case GgmlType::kF32:
        entry.info.dtype = DType::kF32;
        break;
      case GgmlType::kF16:
        entry.info.dtype = DType::kF16;
        break;
      case GgmlType::kBF16:
        entry.info.dtype = DType::kBF16;
        break;
      default:
        break;
    }
    const bool is_query = EndsWith(name, "q_proj.weight") || EndsWith(name, "q_proj.bias");
    const bool is_key = EndsWith(name, "k_proj.weight") || EndsWith(name, "k_proj.bias");
    if (is_query || is_key) {
      if (family_->gguf_interleaves_heads) entry.head_dim = config_.head_dim;
      const std::int64_t rows = entry.info.shape[0];
      const std::int64_t expected = is_query ? config_.q_size() : config_.kv_size();
      if (rows != expected) {
        return absl::InvalidArgumentError(absl::StrCat(file_->path(), ": tensor '", tensor.name, "' has ", rows,
                                                       " outputs, the heads need ", expected));
      }
    }
    names_.push_back(name);
    entries_.emplace(name, std::move(entry));
  }
  return absl::OkStatus();
}

const TensorInfo* GgufModel::Find(absl::string_view name) const {
  const auto it = entries_.find(name);
  return it == entries_.end() ? nullptr : &it->second.info;
}

void GgufModel::ReadRowPart(const GgufTensor& tensor, std::int64_t row, std::int64_t first, std::int64_t count,
                            float* out) const {
  const GgmlTypeTraits& traits = *FindGgmlType(static_cast<std::uint32_t>(tensor.type));
  const std::int64_t blocks_per_row = tensor.dims[0] / traits.block_elems;
  const std::uint8_t* row_data =
      file_->data() + tensor.file_offset + static_cast<std::uint64_t>(row * blocks_per_row * traits.block_bytes);
  const std::int64_t end = first + count;
  while (first < end) {
    const std::int64_t block = first / traits.block_elems;
    const std::int64_t skipped = first % traits.block_elems;
    const std::uint8_t* block_data = row_data + block * traits.block_bytes;
    if (skipped == 0 && end - first >= traits.block_elems) {
      const std::int64_t num_blocks = (end - first) / traits.block_elems;
      DequantizeGgmlBlocks(tensor.type, block_data, num_blocks, out);
      out += num_blocks * traits.block_elems;
      first += num_blocks * traits.block_elems;
    } else {
      float values[256];  // the largest block
      DequantizeGgmlBlocks(tensor.type, block_data, 1, values);
      const std::int64_t part = std::min(end - first, traits.block_elems - skipped);
      std::copy(values + skipped, values + skipped + part, out);
      out += part;
      first += part;
    }
  }
}

absl::Status GgufModel::ReadFloat(absl::string_view name, std::int64_t first, std::int64_t count, float* out) const {
  const auto it = entries_.find(name);
  QST_RETURN_IF_ERROR(
      CheckReadRange(it == entries_.end() ? nullptr : &it->second.info, file_->path(), name, first, count));
  const Entry& entry = it->second;
  // Biases are one row in the file; their elements are rows of one element here.
  const bool is_vector = entry.info.shape.size() == 1;
  const std::int64_t row_elems = entry.head_dim != 0 && is_vector ? 1 : entry.tensor->dims[0];
  while (count > 0) {
    const std::int64_t row = first / row_elems;
    const std::int64_t column = first % row_elems;
    const std::int64_t part = std::min(count, row_elems - column);
    std::int64_t file_row = row;
    if (entry.head_dim != 0) {
      const std::int64_t in_head = row % entry.head_dim;
      const std::int64_t half = entry.head_dim / 2;
      file_row = row - in_head + (in_head % half) * 2 + in_head / half;
    }
    if (row_elems == 1 && is_vector) {
      ReadRowPart(*entry.tensor, 0, file_row, 1, out);
    } else {
      ReadRowPart(*entry.tensor, file_row, column, part, out);
    }
    out += part;
    first += part;
    count -= part;
  }
  return absl::OkStatus();
}

void GgufModel::Release(absl::string_view name) const {
  const auto it = entries_.find(name);
  if (it == entries_.end() || file_->file() == nullptr) return;
  file_->file()->DontNeed(it->second.tensor->file_offset, it->second.tensor->num_bytes);
}

}  // namespace qst
