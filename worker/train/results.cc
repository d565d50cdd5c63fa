#include "worker/train/results.h"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "proto/support/status_macros.h"
#include "worker/checkpoint/file_io.h"
#include "worker/checkpoint/safetensors_reader.h"
#include "worker/checkpoint/safetensors_writer.h"

namespace qst {
namespace {

constexpr std::uint64_t kMaxConfigBytes = 16 << 20;

bool SameDims(const BackboneDims& a, const BackboneDims& b) {
  return a.family == b.family && a.num_layers == b.num_layers && a.hidden_size == b.hidden_size &&
         a.num_heads == b.num_heads && a.num_kv_heads == b.num_kv_heads && a.vocab_size == b.vocab_size &&
         a.output_width() == b.output_width();
}

std::string DimsText(const BackboneDims& dims) {
  return absl::StrCat(dims.family, ", ", dims.num_layers, " layers, hidden size ", dims.hidden_size, ", ",
                      dims.num_heads, " heads, ", dims.num_kv_heads, " key-value heads, vocabulary ", dims.vocab_size);
}

}  // namespace

absl::Status SaveSideNetwork(const std::string& folder, const SideNetwork& network) {
  const Parameters& parameters = network.parameters();
  std::vector<SafetensorsEntry> entries;
  for (const ParameterInfo& info : parameters.layout()) {
    entries.push_back({info.name, DType::kF32, info.shape});
  }
  // The parameters first: a configuration on disk says that they are there.
  QST_ASSIGN_OR_RETURN(
      const std::unique_ptr<SafetensorsStreamWriter> writer,
      SafetensorsStreamWriter::Create(absl::StrCat(folder, "/", kSideNetworkFile), entries,
                                      {{"format", "pt"}, {"family", network.config().backbone.family}}));
  std::vector<float> tensor;
  for (const ParameterInfo& info : parameters.layout()) {
    tensor.resize(static_cast<std::size_t>(info.num_elems()));
    QST_RETURN_IF_ERROR(parameters.Download(ParameterBuffer::kValues, info, tensor.data()));
    QST_RETURN_IF_ERROR(writer->Append(tensor.data(), tensor.size() * sizeof(float)));
  }
  QST_RETURN_IF_ERROR(writer->Finish());
  return WriteFileAtomically(absl::StrCat(folder, "/", kSideConfigFile), SideConfigToJson(network.config()));
}

absl::StatusOr<SideNetworkConfig> LoadSideConfig(const std::string& folder) {
  const std::string path = absl::StrCat(folder, "/", kSideConfigFile);
  QST_ASSIGN_OR_RETURN(const std::string text, ReadSmallFile(path, kMaxConfigBytes));
  absl::StatusOr<SideNetworkConfig> config = SideConfigFromJson(text);
  if (!config.ok()) return Annotate(config.status(), folder);
  return config;
}

absl::StatusOr<std::unique_ptr<SideNetwork>> LoadSideNetwork(const OpContext& ctx, const std::string& folder,
                                                             const BackboneDims& backbone, const FrozenHead& frozen) {
  QST_ASSIGN_OR_RETURN(SideNetworkConfig config, LoadSideConfig(folder));
  if (!SameDims(config.backbone, backbone)) {
    return absl::FailedPreconditionError(absl::StrCat(folder, ": side network was trained for a model with ",
                                                      DimsText(config.backbone), "; this one has ",
                                                      DimsText(backbone)));
  }
  QST_ASSIGN_OR_RETURN(std::unique_ptr<SideNetwork> network, SideNetwork::Create(ctx, std::move(config), frozen, 0));
  QST_ASSIGN_OR_RETURN(const std::unique_ptr<SafetensorsReader> reader,
                       SafetensorsReader::Open(absl::StrCat(folder, "/", kSideNetworkFile)));
  Parameters& parameters = network->parameters();
  std::vector<float> tensor;
  for (const ParameterInfo& info : parameters.layout()) {
    const TensorInfo* found = reader->Find(info.name);
    if (found == nullptr) {
      return absl::InvalidArgumentError(absl::StrCat(reader->path(), ": tensor ", info.name, " is missing"));
    }
    if (found->shape != info.shape) {
      return absl::InvalidArgumentError(
          absl::StrCat(reader->path(), ": tensor ", info.name, " has another shape than ", kSideConfigFile, " says"));
    }
    tensor.resize(static_cast<std::size_t>(info.num_elems()));
    QST_RETURN_IF_ERROR(reader->ReadFloat(info.name, 0, info.num_elems(), tensor.data()));
    QST_RETURN_IF_ERROR(parameters.Upload(ParameterBuffer::kValues, info, tensor.data()));
  }
  return network;
}

}  // namespace qst
