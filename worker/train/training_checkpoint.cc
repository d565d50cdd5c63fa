#include "worker/train/training_checkpoint.h"

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "nlohmann/json.hpp"
#include "proto/support/status_macros.h"
#include "worker/checkpoint/file_io.h"
#include "worker/checkpoint/safetensors_reader.h"
#include "worker/checkpoint/safetensors_writer.h"
#include "worker/checkpoint/stream_digest.h"

namespace qst {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr char kStateFile[] = "state.safetensors";
constexpr char kTrainerFile[] = "trainer_state.json";
constexpr char kStepPrefix[] = "step-";
constexpr char kTempPrefix[] = ".incomplete-";
constexpr char kDamagedPrefix[] = "damaged-";
constexpr char kValuesPrefix[] = "param.";
constexpr char kExpAvgPrefix[] = "exp_avg.";
constexpr char kExpAvgSqPrefix[] = "exp_avg_sq.";
constexpr char kChecksumKey[] = "checksum";
constexpr int kFormatVersion = 1;
constexpr std::uint64_t kMaxJsonBytes = 1 << 20;

// The three buffers of a group that make up its state, and the prefixes of their tensors in the file.
struct StateBuffer {
  std::string prefix;
  ParameterBuffer buffer;
  Parameters* parameters;
};
std::vector<StateBuffer> StateBuffers(const CheckpointGroups& groups) {
  std::vector<StateBuffer> buffers;
  for (const CheckpointGroup& group : groups) {
    buffers.push_back({kValuesPrefix + group.prefix, ParameterBuffer::kValues, group.parameters});
    buffers.push_back({kExpAvgPrefix + group.prefix, ParameterBuffer::kExpAvg, group.parameters});
    buffers.push_back({kExpAvgSqPrefix + group.prefix, ParameterBuffer::kExpAvgSq, group.parameters});
  }
  return buffers;
}

std::string Checksum(const std::string& text) {
  Sha256 sha;
  sha.Update(text.data(), text.size());
  return sha.HexDigest();
}

// The steps of the checkpoints in a folder, newest first.
std::vector<std::int64_t> ListSteps(const std::string& folder) {
  std::vector<std::int64_t> steps;
  std::error_code error;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename().string();
    absl::string_view digits = name;
    std::int64_t step = 0;
    if (absl::ConsumePrefix(&digits, kStepPrefix) && absl::SimpleAtoi(digits, &step) && step >= 0 &&
        name == absl::StrCat(kStepPrefix, step)) {
      steps.push_back(step);
    }
  }
  std::sort(steps.rbegin(), steps.rend());
  return steps;
}

std::string StepFolder(const std::string& folder, std::int64_t step) {
  return absl::StrCat(folder, "/", kStepPrefix, step);
}

Json StateToJson(const TrainerState& state, const std::string& state_sha256) {
  Json json;
  json["format"] = "qst-training-checkpoint";
  json["format_version"] = kFormatVersion;
  json["step"] = state.step;
  json["seed"] = state.seed;
  json["config_fingerprint"] = state.config_fingerprint;
  json["tokens"] = state.tokens;
  json["elapsed_s"] = state.elapsed_s;
  json["metrics_bytes"] = state.metrics_bytes;
  json["last_eval"] = state.last_eval;
  json["best_eval"] = state.best_eval ? Json(*state.best_eval) : Json();
  json["best_eval_step"] = state.best_eval_step;
  json["state_sha256"] = state_sha256;
  return json;
}

absl::StatusOr<TrainerState> StateFromJson(const std::string& text, const std::string& path,
                                           std::string* state_sha256) {
  Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  const auto damaged = [&](const char* why) { return absl::DataLossError(absl::StrCat(path, ": ", why)); };
  if (json.is_discarded() || !json.is_object()) return damaged("not a JSON object");
  try {
    const std::string checksum = json.at(kChecksumKey);
    json.erase(kChecksumKey);
    if (Checksum(json.dump()) != checksum) return damaged("checksum does not match");
    if (json.at("format") != "qst-training-checkpoint" || json.at("format_version") != kFormatVersion) {
      return damaged("another format or version");
    }
    TrainerState state;
    json.at("step").get_to(state.step);
    json.at("seed").get_to(state.seed);
    json.at("config_fingerprint").get_to(state.config_fingerprint);
    json.at("tokens").get_to(state.tokens);
    json.at("elapsed_s").get_to(state.elapsed_s);
    json.at("metrics_bytes").get_to(state.metrics_bytes);
    json.at("last_eval").get_to(state.last_eval);
    if (!json.at("best_eval").is_null()) state.best_eval = json.at("best_eval").get<double>();
    json.at("best_eval_step").get_to(state.best_eval_step);
    json.at("state_sha256").get_to(*state_sha256);
    return state;
  } catch (const std::exception&) {
    return damaged("a field is missing or of the wrong type");
  }
}

absl::Status CheckTensors(const SafetensorsReader& reader, const CheckpointGroups& groups) {
  for (const StateBuffer& buffer : StateBuffers(groups)) {
    for (const ParameterInfo& info : buffer.parameters->layout()) {
      const std::string name = buffer.prefix + info.name;
      const TensorInfo* found = reader.Find(name);
      if (found == nullptr || found->dtype != DType::kF32 || found->shape != info.shape) {
        return absl::DataLossError(absl::StrCat(reader.path(), ": tensor ", name, " is missing or of another shape"));
      }
    }
  }
  return absl::OkStatus();
}

// Everything is checked before the parameters are touched.
absl::StatusOr<TrainerState> LoadCheckpoint(const std::string& folder, const CheckpointGroups& groups) {
  const std::string json_path = absl::StrCat(folder, "/", kTrainerFile);
  QST_ASSIGN_OR_RETURN(const std::string text, ReadSmallFile(json_path, kMaxJsonBytes));
  std::string expected_sha256;
  QST_ASSIGN_OR_RETURN(TrainerState state, StateFromJson(text, json_path, &expected_sha256));
  QST_ASSIGN_OR_RETURN(const std::unique_ptr<SafetensorsReader> reader,
                       SafetensorsReader::Open(absl::StrCat(folder, "/", kStateFile)));
  Sha256 sha;
  sha.Update(reader->file()->data(), reader->file()->size());
  if (sha.HexDigest() != expected_sha256) {
    return absl::DataLossError(absl::StrCat(reader->path(), ": checksum does not match"));
  }
  QST_RETURN_IF_ERROR(CheckTensors(*reader, groups));
  for (const StateBuffer& buffer : StateBuffers(groups)) {
    for (const ParameterInfo& info : buffer.parameters->layout()) {
      const SafetensorsReader::RawTensor raw = reader->Raw(buffer.prefix + info.name);
      QST_RETURN_IF_ERROR(buffer.parameters->Upload(buffer.buffer, info, raw.data));
    }
  }
  return state;
}

// As opposed to a disk or a permission that may be right the next time.
bool IsDamage(const absl::Status& status) {
  return absl::IsDataLoss(status) || absl::IsInvalidArgument(status) || absl::IsNotFound(status) ||
         absl::IsUnimplemented(status);
}

absl::Status FileSystemError(const char* what, const std::string& path, const std::error_code& error) {
  return ErrnoStatus(what, path, error.value());
}

}  // namespace

absl::Status SaveCheckpoint(const std::string& folder, const TrainerState& state, const CheckpointGroups& groups,
                            std::int64_t keep) {
  const std::string final_folder = StepFolder(folder, state.step);
  const std::string temp_folder = absl::StrCat(folder, "/", kTempPrefix, kStepPrefix, state.step);
  std::error_code error;
  fs::remove_all(temp_folder, error);
  fs::create_directories(temp_folder, error);
  if (error) return FileSystemError("cannot create", temp_folder, error);

  std::vector<SafetensorsEntry> entries;
  for (const StateBuffer& buffer : StateBuffers(groups)) {
    for (const ParameterInfo& info : buffer.parameters->layout()) {
      entries.push_back({buffer.prefix + info.name, DType::kF32, info.shape});
    }
  }
  StreamDigest digest;
  QST_ASSIGN_OR_RETURN(const std::unique_ptr<SafetensorsStreamWriter> writer,
                       SafetensorsStreamWriter::Create(absl::StrCat(temp_folder, "/", kStateFile), entries,
                                                       {{"format", "qst-training-checkpoint"}}, &digest));
  std::vector<float> tensor;
  for (const StateBuffer& buffer : StateBuffers(groups)) {
    for (const ParameterInfo& info : buffer.parameters->layout()) {
      tensor.resize(static_cast<std::size_t>(info.num_elems()));
      QST_RETURN_IF_ERROR(buffer.parameters->Download(buffer.buffer, info, tensor.data()));
      QST_RETURN_IF_ERROR(writer->Append(tensor.data(), tensor.size() * sizeof(float)));
    }
  }
  QST_RETURN_IF_ERROR(writer->Finish());

  Json json = StateToJson(state, digest.Finish().sha256);
  json[kChecksumKey] = Checksum(json.dump());
  QST_RETURN_IF_ERROR(WriteFileAtomically(absl::StrCat(temp_folder, "/", kTrainerFile), json.dump(2) + "\n"));

  // Only a run that began anew meets a checkpoint of its own step.
  fs::remove_all(final_folder, error);
  if (std::rename(temp_folder.c_str(), final_folder.c_str()) != 0) {
    return ErrnoStatus("cannot rename to", final_folder, errno);
  }
  QST_RETURN_IF_ERROR(SyncFolder(folder));

  const std::vector<std::int64_t> steps = ListSteps(folder);
  for (std::size_t i = static_cast<std::size_t>(std::max<std::int64_t>(keep, 1)); i < steps.size(); ++i) {
    fs::remove_all(StepFolder(folder, steps[i]), error);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::optional<TrainerState>> LoadNewestCheckpoint(
    const std::string& folder, const std::string& config_fingerprint, const CheckpointGroups& groups,
    const std::function<void(const std::string&)>& on_message) {
  std::error_code error;
  // What a crash in the middle of a save has left.
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    if (absl::StartsWith(it->path().filename().string(), kTempPrefix)) {
      std::error_code ignored;
      fs::remove_all(it->path(), ignored);
    }
  }
  for (const std::int64_t step : ListSteps(folder)) {
    absl::StatusOr<TrainerState> state = LoadCheckpoint(StepFolder(folder, step), groups);
    if (!state.ok()) {
      if (!IsDamage(state.status())) return state.status();
      on_message(
          absl::StrCat("checkpoint of step ", step, " is damaged, trying an older one: ", state.status().message()));
      // Out of the way of the checkpoints to come, but still there to be looked at.
      const std::string aside = absl::StrCat(folder, "/", kDamagedPrefix, kStepPrefix, step);
      fs::remove_all(aside, error);
      fs::rename(StepFolder(folder, step), aside, error);
      if (error) return FileSystemError("cannot rename to", aside, error);
      continue;
    }
    if (state->config_fingerprint != config_fingerprint) {
      return absl::FailedPreconditionError(absl::StrCat(
          StepFolder(folder, step), ": was made with other settings or data; remove ", folder, " to start anew"));
    }
    return std::optional<TrainerState>(*std::move(state));
  }
  return std::optional<TrainerState>();
}

}  // namespace qst
