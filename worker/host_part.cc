#include "worker/host_part.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "proto/support/status_macros.h"
#include "worker/stream/frame.h"
#include "worker/worker_memory.h"

namespace qst {

std::string PartName(const v1::HostedPart& part) {
  return part.is_side() ? "side network" : absl::StrCat("stage ", part.stage());
}

std::string RankName(const v1::JobPlan& plan, int rank) {
  if (rank == plan.stages_size()) return absl::StrCat("side network on worker ", plan.side_worker_id());
  return absl::StrCat("stage ", rank, " on worker ", plan.stages(rank).worker_id());
}

int RankOf(const v1::JobPlan& plan, const v1::HostPart& command) {
  return command.is_side() ? plan.stages_size() : static_cast<int>(command.stage());
}

v1::HostedPart HostedPartOf(const v1::HostPart& command) {
  v1::HostedPart part;
  part.set_job_id(command.plan().job_id());
  part.set_plan_id(command.plan().plan_id());
  part.set_is_side(command.is_side());
  if (!command.is_side()) part.set_stage(command.stage());
  return part;
}

std::vector<std::string> RankNames(const v1::JobPlan& plan) {
  std::vector<std::string> names;
  for (int rank = 0; rank <= plan.stages_size(); ++rank) names.push_back(RankName(plan, rank));
  return names;
}

std::int64_t MaxPassTokens(const v1::JobPlan& plan) {
  return std::max<std::int64_t>(plan.backbone_batch_tokens(), plan.max_sequence_tokens());
}

DType WireDtypeOf(const v1::JobPlan& plan) {
  switch (plan.wire_dtype()) {
    case v1::WIRE_DTYPE_F32:
      return DType::kF32;
    case v1::WIRE_DTYPE_INT8:
      return DType::kI8;
    case v1::WIRE_DTYPE_FP8:
      return DType::kF8E4M3;
    default:
      return DType::kBF16;
  }
}

DType ComputeDtypeOf(const v1::JobPlan& plan) {
  switch (plan.compute_dtype()) {
    case v1::COMPUTE_DTYPE_F16:
      return DType::kF16;
    case v1::COMPUTE_DTYPE_F32:
      return DType::kF32;
    default:
      return DType::kBF16;
  }
}

std::string DescribeMemory(const PartContext& context) {
  const std::string host = absl::StrCat("peak ", FormatMegabytes(ReadProcessMemory().peak_bytes), " of budget ",
                                        FormatMegabytes(context.memory->total_bytes()));
  if (!context.device->is_cuda()) return absl::StrCat("memory: ", host);
  return absl::StrCat("memory: ", context.device->DescribeMemory(), "; host: ", host);
}

absl::Status CheckPlan(const v1::JobPlan& plan) {
  const std::string where = absl::StrCat("plan ", plan.plan_id(), ": ");
  if (plan.plan_id().empty() || plan.job_id().empty()) return absl::InvalidArgumentError(where + "has no id");
  if (plan.stages_size() == 0) return absl::InvalidArgumentError(where + "has no stages");
  std::uint64_t next_layer = 0;
  for (int i = 0; i < plan.stages_size(); ++i) {
    const v1::PlacedStage& stage = plan.stages(i);
    if (stage.stage() != static_cast<std::uint32_t>(i) || stage.first_layer() != next_layer ||
        stage.num_layers() == 0) {
      return absl::InvalidArgumentError(absl::StrCat(where, "stage ", i, " is out of order"));
    }
    next_layer += stage.num_layers();
  }
  if (next_layer > kMaxFrameLayer) {
    return absl::InvalidArgumentError(absl::StrCat(where, next_layer, " layers, at most ", kMaxFrameLayer));
  }
  if (!v1::WireDtype_IsValid(plan.wire_dtype())) {
    return absl::InvalidArgumentError(absl::StrCat(where, "wire type ", plan.wire_dtype(),
                                                   " is unknown to this worker; is it older than the coordinator?"));
  }
  if (!v1::ComputeDtype_IsValid(plan.compute_dtype())) {
    return absl::InvalidArgumentError(absl::StrCat(where, "compute type ", plan.compute_dtype(),
                                                   " is unknown to this worker; is it older than the coordinator?"));
  }
  if (plan.max_passes_in_flight() == 0 || MaxPassTokens(plan) < 1) {
    return absl::InvalidArgumentError(where + "allows no passes");
  }
  return absl::OkStatus();
}

absl::Status CheckPart(const v1::HostPart& command) {
  QST_RETURN_IF_ERROR(CheckPlan(command.plan()));
  const std::string where = absl::StrCat("plan ", command.plan().plan_id(), ": ");
  if (!command.is_side() && command.stage() >= static_cast<std::uint32_t>(command.plan().stages_size())) {
    return absl::InvalidArgumentError(absl::StrCat(where, "no stage ", command.stage()));
  }
  if (command.is_side() && command.work_case() == v1::HostPart::WORK_NOT_SET) {
    return absl::InvalidArgumentError(where + "the side network has nothing to do");
  }
  return absl::OkStatus();
}

}  // namespace qst
