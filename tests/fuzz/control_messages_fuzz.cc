// Control messages that arrive over the network, after the protocol buffer parser: a job that is accepted stays so and
// is in range, and a part that a worker accepts has the stages, layers and names that the rest of it counts on.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>

#include "google/protobuf/stubs/logging.h"
#include "proto/qst/v1/control.pb.h"
#include "proto/qst/v1/job_spec.pb.h"
#include "proto/support/status_macros.h"
#include "server/job_spec_defaults.h"
#include "worker/host_part.h"

namespace {

void CheckSpec(qst::v1::JobSpec spec) {
  qst::FillJobSpecDefaults(&spec);
  const std::string filled = spec.SerializeAsString();
  qst::FillJobSpecDefaults(&spec);
  QST_CHECK(spec.SerializeAsString() == filled);
  const absl::Status status = qst::ValidateJobSpec(spec);
  if (!status.ok()) {
    QST_CHECK(absl::IsInvalidArgument(status) && !status.message().empty());
    return;
  }
  QST_CHECK(!spec.model().empty() && !spec.data().train().empty());
  QST_CHECK(spec.train().batch_size() > 0 && spec.train().backbone_batch_tokens() >= spec.data().max_length());
  QST_CHECK(std::isfinite(spec.train().learning_rate()) && std::isfinite(spec.side().gate_lr_scale()));
}

void CheckModel(const qst::v1::Model& model, qst::v1::JobSpec spec) {
  if (!qst::MatchModel(model, &spec).ok()) return;
  QST_CHECK(spec.quantization().SerializeAsString() == model.quantization().SerializeAsString());
  qst::v1::Quantization quantization = model.quantization();
  if (!qst::ResolveQuantization(&quantization).ok()) return;
  QST_CHECK(quantization.type() != 0 && quantization.block_size() >= 64);
}

void CheckHostPart(const qst::v1::HostPart& part) {
  const absl::Status status = qst::CheckPart(part);
  if (!status.ok()) {
    QST_CHECK(absl::IsInvalidArgument(status) && !status.message().empty());
    return;
  }
  const qst::v1::JobPlan& plan = part.plan();
  std::uint64_t num_layers = 0;
  for (const qst::v1::PlacedStage& stage : plan.stages()) {
    QST_CHECK(stage.first_layer() == num_layers);
    num_layers += stage.num_layers();
  }
  QST_CHECK(num_layers <= 0xffff);  // a frame's tag has 16 bits for the layer
  QST_CHECK(qst::RankOf(plan, part) >= 0 && qst::RankOf(plan, part) <= plan.stages_size());
  QST_CHECK(qst::RankNames(plan).size() == static_cast<std::size_t>(plan.stages_size()) + 1);
  QST_CHECK(!qst::PartName(qst::HostedPartOf(part)).empty());
  QST_CHECK(qst::MaxPassTokens(plan) > 0);
  QST_CHECK(qst::DTypeBytes(qst::WireDtypeOf(plan)) > 0 && qst::DTypeBytes(qst::ComputeDtypeOf(plan)) > 0);
}

}  // namespace

// The first byte chooses the message, the rest is its bytes.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  // Text that is not UTF-8 would be logged each time.
  static const auto previous = google::protobuf::SetLogHandler(nullptr);
  static_cast<void>(previous);
  if (size == 0) return 0;
  const std::string bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
  if (data[0] % 3 == 0) {
    qst::v1::JobSpec spec;
    if (spec.ParseFromString(bytes)) CheckSpec(spec);
  } else if (data[0] % 3 == 1) {
    qst::v1::Model model;
    if (model.ParseFromString(bytes)) CheckModel(model, {});
  } else {
    qst::v1::HostPart part;
    if (part.ParseFromString(bytes)) CheckHostPart(part);
  }
  return 0;
}
