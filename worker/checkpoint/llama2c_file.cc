#include "worker/checkpoint/llama2c_file.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/support/status_macros.h"

namespace qst {
namespace {

constexpr std::uint32_t kNewerMagic = 0x616b3432;  // "ak42": layouts with a version number
constexpr std::int64_t kFloatBytes = 4;
constexpr double kNormEps = 1e-5;  // llama2.c has it in its code
constexpr double kRopeTheta = 10000.0;

std::int32_t LoadInt32(const char* bytes) {
  const auto* b = reinterpret_cast<const unsigned char*>(bytes);
  return static_cast<std::int32_t>(static_cast<std::uint32_t>(b[0]) | static_cast<std::uint32_t>(b[1]) << 8 |
                                   static_cast<std::uint32_t>(b[2]) << 16 | static_cast<std::uint32_t>(b[3]) << 24);
}

// The config that a header means, checked. `start` holds it.
absl::StatusOr<ModelConfig> ParseHeader(absl::string_view start, absl::string_view where) {
  std::int64_t field[7];
  for (int i = 0; i < 7; ++i) field[i] = LoadInt32(start.data() + 4 * i);
  ModelConfig config;
  config.hidden_size = field[0];
  config.intermediate_size = field[1];
  config.num_layers = field[2];
  config.num_heads = field[3];
  config.num_kv_heads = field[4];
  config.vocab_size = field[5] < 0 ? -field[5] : field[5];
  config.tie_word_embeddings = field[5] > 0;
  config.max_position_embeddings = field[6];
  if (config.num_heads <= 0 || config.hidden_size % config.num_heads != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(where, ": dim ", config.hidden_size, " is no multiple of n_heads ", config.num_heads));
  }
  config.head_dim = config.hidden_size / config.num_heads;
  config.norm_eps = kNormEps;
  config.rope_theta = kRopeTheta;
  config.bos_token_id = 1;
  config.eos_token_ids = {2, 1};  // llama2.c ends a text where the next one would begin
  QST_RETURN_IF_ERROR(ValidateModelConfig(config, where));
  return config;
}

// Floats of the two rotary tables.
std::int64_t RotaryElems(const ModelConfig& config) { return config.max_position_embeddings * config.head_dim; }

std::uint64_t ExpectedBytes(const ModelConfig& config) {
  return kLlama2cHeaderBytes +
         static_cast<std::uint64_t>(config.NumParameters() + RotaryElems(config)) * std::uint64_t{kFloatBytes};
}

}  // namespace

bool IsLlama2c(absl::string_view start, std::uint64_t file_bytes) {
  if (start.size() < kLlama2cHeaderBytes) return false;
  if (static_cast<std::uint32_t>(LoadInt32(start.data())) == kNewerMagic) return true;
  const absl::StatusOr<ModelConfig> config = ParseHeader(start, "");
  return config.ok() && ExpectedBytes(*config) == file_bytes;
}

absl::StatusOr<std::unique_ptr<Llama2cFile>> Llama2cFile::Open(const std::string& path) {
  QST_ASSIGN_OR_RETURN(std::unique_ptr<MappedFile> file, MappedFile::Open(path));
  std::unique_ptr<Llama2cFile> reader(new Llama2cFile);
  reader->path_ = path;
  reader->data_ = file->data();
  reader->size_ = file->size();
  reader->file_ = std::move(file);
  QST_RETURN_IF_ERROR(reader->Parse());
  return reader;
}

absl::StatusOr<std::unique_ptr<Llama2cFile>> Llama2cFile::FromMemory(const std::uint8_t* data, std::uint64_t size,
                                                                     const std::string& name) {
  std::unique_ptr<Llama2cFile> reader(new Llama2cFile);
  reader->path_ = name;
  reader->data_ = data;
  reader->size_ = size;
  QST_RETURN_IF_ERROR(reader->Parse());
  return reader;
}

absl::Status Llama2cFile::Parse() {
  if (size_ < kLlama2cHeaderBytes) {
    return absl::DataLossError(
        absl::StrCat(path_, ": cut short: ", size_, " bytes, the header of a llama2.c file has ", kLlama2cHeaderBytes));
  }
  const absl::string_view start(reinterpret_cast<const char*>(data_), kLlama2cHeaderBytes);
  if (static_cast<std::uint32_t>(LoadInt32(start.data())) == kNewerMagic) {
    return absl::UnimplementedError(absl::StrCat(path_, ": llama2.c layout of version ", LoadInt32(start.data() + 4),
                                                 " is not supported; export the model with version 0 (float32)"));
  }
  QST_ASSIGN_OR_RETURN(config_, ParseHeader(start, path_));
  if (ExpectedBytes(config_) != size_) {
    return absl::DataLossError(
        absl::StrCat(path_, ": ", size_, " bytes, its header asks for ", ExpectedBytes(config_)));
  }
  MapTensors(!config_.tie_word_embeddings);
  return absl::OkStatus();
}

void Llama2cFile::MapTensors(bool has_head) {
  std::uint64_t offset = kLlama2cHeaderBytes;
  const auto add = [&](std::string name, std::vector<std::int64_t> shape, bool is_interleaved = false) {
    Entry entry;
    entry.info.encoding = "F32";
    entry.info.dtype = DType::kF32;
    entry.info.num_elems = 1;
    for (const std::int64_t dim : shape) entry.info.num_elems *= dim;
    entry.info.shape = std::move(shape);
    entry.offset = offset;
    entry.is_interleaved = is_interleaved;
    offset += static_cast<std::uint64_t>(entry.info.num_elems * kFloatBytes);
    names_.push_back(name);
    entries_[std::move(name)] = std::move(entry);
  };
  const auto add_layers = [&](const char* name, const std::vector<std::int64_t>& shape, bool is_interleaved = false) {
    for (std::int64_t layer = 0; layer < config_.num_layers; ++layer) {
      add(absl::StrCat("model.layers.", layer, ".", name, ".weight"), shape, is_interleaved);
    }
  };
  const std::int64_t d = config_.hidden_size;
  const std::int64_t ff = config_.intermediate_size;
  add("model.embed_tokens.weight", {config_.vocab_size, d});
  add_layers("input_layernorm", {d});
  add_layers("self_attn.q_proj", {config_.q_size(), d}, true);
  add_layers("self_attn.k_proj", {config_.kv_size(), d}, true);
  add_layers("self_attn.v_proj", {config_.kv_size(), d});
  add_layers("self_attn.o_proj", {d, config_.q_size()});
  add_layers("post_attention_layernorm", {d});
  add_layers("mlp.gate_proj", {ff, d});
  add_layers("mlp.down_proj", {d, ff});
  add_layers("mlp.up_proj", {ff, d});
  add("model.norm.weight", {d});
  offset += static_cast<std::uint64_t>(RotaryElems(config_) * kFloatBytes);
  if (has_head) add("lm_head.weight", {config_.vocab_size, d});
  QST_CHECK(offset == size_);
}

const TensorInfo* Llama2cFile::Find(absl::string_view name) const {
  const auto it = entries_.find(name);
  return it == entries_.end() ? nullptr : &it->second.info;
}

absl::Status Llama2cFile::ReadFloat(absl::string_view name, std::int64_t first, std::int64_t count, float* out) const {
  const auto it = entries_.find(name);
  QST_RETURN_IF_ERROR(CheckReadRange(it == entries_.end() ? nullptr : &it->second.info, path_, name, first, count));
  const Entry& entry = it->second;
  const std::uint8_t* const data = data_ + entry.offset;
  const auto copy = [&](std::int64_t from, std::int64_t n) {
    std::memcpy(out, data + from * kFloatBytes, static_cast<std::size_t>(n * kFloatBytes));
    out += n;
  };
  if (!entry.is_interleaved) {
    if (count > 0) copy(first, count);
    return absl::OkStatus();
  }
  const std::int64_t row_elems = entry.info.shape[1];
  const std::int64_t half = config_.head_dim / 2;
  while (count > 0) {
    const std::int64_t row = first / row_elems;
    const std::int64_t column = first % row_elems;
    const std::int64_t part = std::min(count, row_elems - column);
    const std::int64_t in_head = row % config_.head_dim;
    copy((row - in_head + (in_head % half) * 2 + in_head / half) * row_elems + column, part);
    first += part;
    count -= part;
  }
  return absl::OkStatus();
}

void Llama2cFile::Release(absl::string_view name) const {
  const auto it = entries_.find(name);
  if (file_ == nullptr || it == entries_.end()) return;
  file_->DontNeed(it->second.offset, static_cast<std::uint64_t>(it->second.info.num_elems * kFloatBytes));
}

}  // namespace qst
