#include "worker/checkpoint/store_format.h"

#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"
#include "proto/support/status_macros.h"

namespace qst {
namespace {

using Json = nlohmann::json;

constexpr std::int64_t kMaxDimension = std::int64_t{1} << 31;

bool IsWholeNumber(const Json& object, const char* name) {
  return object.contains(name) && object[name].is_number_unsigned() &&
         object[name].get<std::uint64_t>() <= static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
}

bool IsString(const Json& object, const char* name) { return object.contains(name) && object[name].is_string(); }

std::optional<Quant4Type> ParseQuant4Type(const std::string& name) {
  if (name == "nf4") return Quant4Type::kNF4;
  if (name == "fp4") return Quant4Type::kFP4;
  return std::nullopt;
}

bool IsError(const Json& object, const char* name) {
  return object.contains(name) && object[name].is_number() && object[name].get<double>() >= 0.0;
}

// The parts that came later: both or neither are there. False if they are malformed.
bool ReadErrors(const Json& object, StoreManifest* manifest) {
  if (!object.contains("quantization_error") && !object.contains("layers")) return true;
  if (!IsError(object, "quantization_error") || !object.contains("layers") || !object["layers"].is_array())
    return false;
  manifest->quantization_error = object["quantization_error"].get<double>();
  for (const Json& entry : object["layers"]) {
    if (!entry.is_object() || !IsWholeNumber(entry, "parameters") || !IsWholeNumber(entry, "bytes") ||
        !IsError(entry, "quantization_error") || !IsString(entry, "worst_tensor") || !IsError(entry, "worst_error")) {
      return false;
    }
    StoreLayer& layer = manifest->layers.emplace_back();
    layer.num_parameters = entry["parameters"].get<std::int64_t>();
    layer.bytes = entry["bytes"].get<std::int64_t>();
    layer.quantization_error = entry["quantization_error"].get<double>();
    layer.worst_tensor = entry["worst_tensor"].get<std::string>();
    layer.worst_error = entry["worst_error"].get<double>();
  }
  return true;
}

}  // namespace

std::string QuantStateToJson(const QuantState& state) {
  Json object;
  object["quant_type"] = Quant4TypeName(state.type);
  object["blocksize"] = state.block_size;
  object["dtype"] = state.dtype;
  object["shape"] = state.shape;
  if (state.double_quant) {
    object["nested_blocksize"] = state.nested_block_size;
    object["nested_dtype"] = "float32";
    // As a double: every float32 is one, so the text gives the same float32 back.
    object["nested_offset"] = static_cast<double>(state.nested_offset);
  }
  return object.dump();
}

absl::StatusOr<QuantState> ParseQuantState(absl::string_view json_text, absl::string_view where) {
  const auto broken = [&](absl::string_view what) {
    return absl::DataLossError(absl::StrCat(where, ": quant_state: ", what));
  };
  const Json object = Json::parse(json_text.begin(), json_text.end(), nullptr, /*allow_exceptions=*/false);
  if (!object.is_object()) return broken("not a JSON object");
  QuantState state;
  if (!IsString(object, "quant_type")) return broken("quant_type is missing");
  const std::optional<Quant4Type> type = ParseQuant4Type(object["quant_type"].get<std::string>());
  if (!type.has_value()) return broken("quant_type is neither nf4 nor fp4");
  state.type = *type;
  if (!IsWholeNumber(object, "blocksize")) return broken("blocksize is missing");
  state.block_size = object["blocksize"].get<std::int64_t>();
  if (state.block_size < 2 || state.block_size > 65536 || state.block_size % 2 != 0)
    return broken("blocksize is out of range");
  if (IsString(object, "dtype")) state.dtype = object["dtype"].get<std::string>();
  if (!object.contains("shape") || !object["shape"].is_array() || object["shape"].size() != 2) {
    return broken("shape is not a list of two numbers");
  }
  for (const Json& dim : object["shape"]) {
    if (!dim.is_number_unsigned() || dim.get<std::uint64_t>() > static_cast<std::uint64_t>(kMaxDimension)) {
      return broken("shape is not a list of two numbers");
    }
    state.shape.push_back(dim.get<std::int64_t>());
  }
  state.double_quant = object.contains("nested_blocksize");
  if (state.double_quant) {
    if (!IsWholeNumber(object, "nested_blocksize")) return broken("nested_blocksize is not a number");
    state.nested_block_size = object["nested_blocksize"].get<std::int64_t>();
    if (state.nested_block_size < 1 || state.nested_block_size > 65536)
      return broken("nested_blocksize is out of range");
    if (!object.contains("nested_offset") || !object["nested_offset"].is_number())
      return broken("nested_offset is missing");
    state.nested_offset = static_cast<float>(object["nested_offset"].get<double>());
    if (!std::isfinite(state.nested_offset)) return broken("nested_offset is not finite");
  }
  return state;
}

std::string StoreManifestToJson(const StoreManifest& manifest) {
  Json object;
  object["format_version"] = manifest.format_version;
  object["name"] = manifest.name;
  object["source"] =
      Json{{"path", manifest.source_path}, {"format", manifest.source_format}, {"bytes", manifest.source_bytes}};
  Json quantization = Json{{"type", "none"}};
  if (manifest.quantization.has_value()) {
    quantization = Json{{"type", Quant4TypeName(manifest.quantization->type)},
                        {"block_size", manifest.quantization->block_size},
                        {"double_quant", manifest.quantization->double_quant}};
  }
  object["quantization"] = quantization;
  object["parameters"] = manifest.num_parameters;
  object["weights"] = Json{{"sha256", manifest.weights_sha256}, {"bytes", manifest.weights_bytes}};
  object["bytes"] =
      Json{{"embedding", manifest.embedding_bytes}, {"layers", manifest.layers_bytes}, {"head", manifest.head_bytes}};
  object["quantization_error"] = manifest.quantization_error;
  object["layers"] = Json::array();
  for (const StoreLayer& layer : manifest.layers) {
    object["layers"].push_back(Json{{"parameters", layer.num_parameters},
                                    {"bytes", layer.bytes},
                                    {"quantization_error", layer.quantization_error},
                                    {"worst_tensor", layer.worst_tensor},
                                    {"worst_error", layer.worst_error}});
  }
  return object.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

absl::StatusOr<StoreManifest> ParseStoreManifest(absl::string_view json_text, absl::string_view where) {
  const auto broken = [&](absl::string_view what) {
    return absl::InvalidArgumentError(absl::StrCat(where, ": ", what));
  };
  const Json object = Json::parse(json_text.begin(), json_text.end(), nullptr, /*allow_exceptions=*/false);
  if (!object.is_object() || !IsWholeNumber(object, "format_version")) {
    return broken("not the description of a stored model (a JSON object with a format_version)");
  }
  StoreManifest manifest;
  manifest.format_version = object["format_version"].get<std::int64_t>();
  if (manifest.format_version != kStoreFormatVersion) {
    return absl::UnimplementedError(absl::StrCat(where, ": format version ", manifest.format_version,
                                                 "; this program reads version ", kStoreFormatVersion,
                                                 ": import the model again"));
  }
  for (const char* part : {"source", "quantization", "weights", "bytes"}) {
    if (!object.contains(part) || !object[part].is_object()) return broken(absl::StrCat("'", part, "' is missing"));
  }
  const Json& source = object["source"];
  const Json& quantization = object["quantization"];
  const Json& weights = object["weights"];
  const Json& bytes = object["bytes"];
  if (!IsString(object, "name") || !IsWholeNumber(object, "parameters") || !IsString(source, "path") ||
      !IsString(source, "format") || !IsWholeNumber(source, "bytes") || !IsString(quantization, "type") ||
      !IsString(weights, "sha256") || !IsWholeNumber(weights, "bytes") || !IsWholeNumber(bytes, "embedding") ||
      !IsWholeNumber(bytes, "layers") || !IsWholeNumber(bytes, "head")) {
    return broken("a field is missing or of the wrong type");
  }
  manifest.name = object["name"].get<std::string>();
  manifest.source_path = source["path"].get<std::string>();
  manifest.source_format = source["format"].get<std::string>();
  manifest.source_bytes = source["bytes"].get<std::uint64_t>();
  const std::string type_name = quantization["type"].get<std::string>();
  if (type_name != "none") {
    const std::optional<Quant4Type> type = ParseQuant4Type(type_name);
    if (!type.has_value() || !IsWholeNumber(quantization, "block_size") || !quantization.contains("double_quant") ||
        !quantization["double_quant"].is_boolean()) {
      return broken("'quantization' is not one of none, nf4, fp4 with block_size and double_quant");
    }
    manifest.quantization = StoreQuantization{*type, quantization["block_size"].get<std::int64_t>(),
                                              quantization["double_quant"].get<bool>()};
  }
  manifest.num_parameters = object["parameters"].get<std::int64_t>();
  manifest.weights_sha256 = weights["sha256"].get<std::string>();
  manifest.weights_bytes = weights["bytes"].get<std::uint64_t>();
  manifest.embedding_bytes = bytes["embedding"].get<std::uint64_t>();
  manifest.layers_bytes = bytes["layers"].get<std::uint64_t>();
  manifest.head_bytes = bytes["head"].get<std::uint64_t>();
  if (!ReadErrors(object, &manifest)) return broken("'quantization_error' or 'layers' is not what imports write");
  return manifest;
}

std::string QuantizationConfigJson(const StoreQuantization& quantization,
                                   const std::vector<std::string>& unquantized_modules) {
  Json object;
  object["quant_method"] = "bitsandbytes";
  object["load_in_4bit"] = true;
  object["load_in_8bit"] = false;
  object["bnb_4bit_quant_type"] = Quant4TypeName(quantization.type);
  object["bnb_4bit_use_double_quant"] = quantization.double_quant;
  object["bnb_4bit_compute_dtype"] = "float32";
  object["bnb_4bit_quant_storage"] = "uint8";
  object["llm_int8_skip_modules"] = Json::array({"lm_head"});
  for (const std::string& module : unquantized_modules) object["llm_int8_skip_modules"].push_back(module);
  return object.dump();
}

}  // namespace qst
