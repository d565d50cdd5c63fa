#include "worker/host_import.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "proto/support/status_macros.h"
#include "worker/checkpoint/import_model.h"
#include "worker/checkpoint/stored_model.h"
#include "worker/worker_memory.h"

namespace qst {
namespace {

constexpr absl::Duration kProgressInterval = absl::Milliseconds(250);

v1::Quantization ToProto(const std::optional<StoreQuantization>& quantization) {
  v1::Quantization proto;
  if (!quantization.has_value()) {
    proto.set_type(v1::QUANTIZATION_TYPE_NONE);
    return proto;
  }
  proto.set_type(quantization->type == Quant4Type::kNF4 ? v1::QUANTIZATION_TYPE_NF4 : v1::QUANTIZATION_TYPE_FP4);
  proto.set_block_size(static_cast<std::uint32_t>(quantization->block_size));
  proto.set_double_quant(quantization->double_quant);
  return proto;
}

void AddLayers(const StoreManifest& manifest, v1::Model* model) {
  model->set_quantization_error(manifest.quantization_error);
  for (const StoreLayer& layer : manifest.layers) {
    v1::LayerSummary* summary = model->add_layers();
    summary->set_num_parameters(static_cast<std::uint64_t>(layer.num_parameters));
    summary->set_stored_bytes(static_cast<std::uint64_t>(layer.bytes));
    summary->set_quantization_error(layer.quantization_error);
    summary->set_worst_tensor(layer.worst_tensor);
    summary->set_worst_error(layer.worst_error);
  }
}

absl::StatusOr<std::optional<StoreQuantization>> QuantizationOf(const v1::Quantization& quantization) {
  if (quantization.type() == v1::QUANTIZATION_TYPE_NONE) return std::optional<StoreQuantization>();
  StoreQuantization out;
  switch (quantization.type()) {
    case v1::QUANTIZATION_TYPE_UNSPECIFIED:
    case v1::QUANTIZATION_TYPE_NF4:
      out.type = Quant4Type::kNF4;
      break;
    case v1::QUANTIZATION_TYPE_FP4:
      out.type = Quant4Type::kFP4;
      break;
    default:
      return absl::InvalidArgumentError(absl::StrCat("quantization.type: ", quantization.type(), " is not known"));
  }
  if (quantization.block_size() != 0) out.block_size = quantization.block_size();
  if (quantization.has_double_quant()) out.double_quant = quantization.double_quant();
  return std::optional<StoreQuantization>(out);
}

}  // namespace

ModelImport::ModelImport(const v1::ImportCommand& command, int num_threads, WorkerReports* reports)
    : command_(command), num_threads_(num_threads), reports_(reports) {
  thread_ = std::thread([this] { Run(); });
}

ModelImport::~ModelImport() {
  Cancel();
  thread_.join();
}

void ModelImport::Report(const v1::Model& model) {
  v1::ModelReport report;
  *report.mutable_model() = model;
  reports_->AddModel(report);
}

void ModelImport::Run() {
  v1::Model model;
  model.set_name(command_.name());
  model.set_source_path(command_.source_path());
  *model.mutable_quantization() = command_.quantization();
  model.set_state(v1::MODEL_STATE_IMPORTING);
  spdlog::info("model {}: importing {}", command_.name(), command_.source_path());
  const absl::Time start = absl::Now();
  const absl::Status status = Execute(&model);
  if (status.ok()) {
    model.set_state(v1::MODEL_STATE_READY);
    model.clear_status_message();
    spdlog::info("model {}: imported in {:.1f} s", command_.name(), absl::ToDoubleSeconds(absl::Now() - start));
  } else {
    model.set_state(v1::MODEL_STATE_FAILED);
    model.set_status_message(absl::IsCancelled(status) ? "cancelled" : std::string(status.message()));
    spdlog::error("model {}: import failed: {}", command_.name(), status.ToString());
  }
  TrimMalloc();
  Report(model);
  is_over_ = true;
}

absl::Status ModelImport::Execute(v1::Model* model) {
  ImportOptions options;
  options.source = command_.source_path();
  options.destination = command_.destination_path();
  options.name = command_.name();
  options.num_threads = num_threads_;
  QST_ASSIGN_OR_RETURN(options.quantization, QuantizationOf(command_.quantization()));
  // What is left open is the default, or what the source comes with.
  options.required.type = command_.quantization().type() != v1::QUANTIZATION_TYPE_UNSPECIFIED;
  options.required.block_size = command_.quantization().block_size() != 0;
  options.required.double_quant = command_.quantization().has_double_quant();
  absl::Time next_report = absl::InfinitePast();
  const auto progress = [&](std::int64_t done_bytes, std::int64_t total_bytes, absl::string_view what) {
    if (is_cancelled_) return false;
    if (absl::Now() < next_report) return true;
    next_report = absl::Now() + kProgressInterval;
    model->set_bytes_done(static_cast<std::uint64_t>(done_bytes));
    model->set_bytes_total(static_cast<std::uint64_t>(total_bytes));
    model->set_status_message(std::string(what));
    Report(*model);
    return true;
  };
  QST_RETURN_IF_ERROR(ImportModel(options, progress));

  QST_ASSIGN_OR_RETURN(const std::unique_ptr<StoredModel> stored, StoredModel::Open(command_.destination_path()));
  const ModelConfig& config = stored->config();
  const StoreManifest& manifest = stored->manifest();
  model->set_bytes_done(manifest.weights_bytes);
  model->set_bytes_total(manifest.weights_bytes);
  model->set_architecture(config.architecture);
  model->set_num_layers(static_cast<std::uint32_t>(config.num_layers));
  model->set_hidden_size(static_cast<std::uint32_t>(config.hidden_size));
  model->set_intermediate_size(static_cast<std::uint32_t>(config.intermediate_size));
  model->set_num_heads(static_cast<std::uint32_t>(config.num_heads));
  model->set_num_kv_heads(static_cast<std::uint32_t>(config.num_kv_heads));
  model->set_head_dim(static_cast<std::uint32_t>(config.head_dim));
  model->set_vocab_size(static_cast<std::uint32_t>(config.vocab_size));
  model->set_family(ModelFamilyName(config.family));
  model->set_position_rows(static_cast<std::uint32_t>(config.position_rows()));
  model->set_embedding_size(config.has_projections() ? static_cast<std::uint32_t>(config.embedding_width()) : 0);
  model->set_num_parameters(static_cast<std::uint64_t>(config.NumParameters()));
  model->set_stored_bytes(manifest.weights_bytes);
  // The largest: layers differ where some modules are not quantized.
  std::int64_t layer_bytes = 0;
  for (std::int64_t i = 0; i < config.num_layers; ++i) layer_bytes = std::max(layer_bytes, stored->LayerBytes(i));
  model->set_layer_bytes(static_cast<std::uint64_t>(layer_bytes));
  model->set_embedding_bytes(manifest.embedding_bytes);
  model->set_head_bytes(config.tie_word_embeddings ? 0 : manifest.head_bytes);
  *model->mutable_quantization() = ToProto(manifest.quantization);
  AddLayers(manifest, model);
  return absl::OkStatus();
}

}  // namespace qst
