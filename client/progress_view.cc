#include "client/progress_view.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "client/format.h"

namespace qst {
namespace {

double ShareDone(const v1::JobProgress& progress) {
  if (progress.total_steps() == 0) return 0;
  return std::min(1.0, static_cast<double>(progress.step()) / static_cast<double>(progress.total_steps()));
}

std::vector<std::string> Details(const v1::JobProgress& progress, bool with_step) {
  std::vector<std::string> parts;
  if (with_step) parts.push_back(absl::StrCat("step ", progress.step(), "/", progress.total_steps()));
  parts.push_back(absl::StrFormat("epoch %.2f", progress.epoch()));
  if (!with_step) parts.push_back(absl::StrCat("step ", progress.step(), "/", progress.total_steps()));
  if (progress.has_loss()) parts.push_back(absl::StrCat("loss ", FormatMetric(progress.loss())));
  if (progress.tokens_per_second() > 0) {
    parts.push_back(absl::StrFormat("%.0f tok/s", progress.tokens_per_second()));
  }
  if (progress.eta_s() > 0) parts.push_back(absl::StrCat("ETA ", FormatSeconds(progress.eta_s())));
  return parts;
}

}  // namespace

std::string StateName(v1::JobState state) {
  return std::string(absl::StripPrefix(v1::JobState_Name(state), "JOB_STATE_"));
}
std::string StateName(v1::ModelState state) {
  return std::string(absl::StripPrefix(v1::ModelState_Name(state), "MODEL_STATE_"));
}
std::string StateName(v1::WorkerState state) {
  return std::string(absl::StripPrefix(v1::WorkerState_Name(state), "WORKER_STATE_"));
}

bool IsFinal(v1::JobState state) {
  return state == v1::JOB_STATE_SUCCEEDED || state == v1::JOB_STATE_FAILED || state == v1::JOB_STATE_CANCELLED;
}

std::string ProgressBar(double share, int width) {
  const int inner = std::max(1, width - 2);
  const int done = static_cast<int>(std::clamp(share, 0.0, 1.0) * inner);
  std::string bar(inner, ' ');
  std::fill(bar.begin(), bar.begin() + done, '=');
  if (done > 0 && done < inner) bar[done - 1] = '>';
  return absl::StrCat("[", bar, "]");
}

std::string TerminalLine(const JobView& view, int width) {
  const std::string state = StateName(view.state);
  const bool steps = view.progress.total_steps() > 0 &&
                     (view.state == v1::JOB_STATE_RUNNING || view.state == v1::JOB_STATE_EVALUATING);
  if (!steps) {
    return Fit(absl::StrCat(state, view.status_message.empty() ? "" : "  ", OneLine(view.status_message)), width);
  }
  const double share = ShareDone(view.progress);
  const std::string tail = absl::StrCat(absl::StrFormat("%3.0f%%", std::floor(share * 100)), "  ",
                                        absl::StrJoin(Details(view.progress, false), "  "));
  const int room = width - static_cast<int>(state.size() + 2 + tail.size());
  if (room < 8) return Fit(absl::StrCat(state, " ", tail), width);
  return absl::StrCat(state, " ", ProgressBar(share, std::min(room, 32)), " ", tail);
}

std::string PlainLine(const JobView& view) {
  std::vector<std::string> parts = Details(view.progress, true);
  parts[0] += absl::StrFormat(" (%.0f%%)", std::floor(ShareDone(view.progress) * 100));
  return absl::StrJoin(parts, "  ");
}

std::string EvaluationLine(absl::string_view metrics_json) {
  const auto json = nlohmann::json::parse(metrics_json.begin(), metrics_json.end(), nullptr, false);
  if (!json.is_object() || !json.contains("eval") || !json["eval"].is_object()) return "";
  std::vector<std::string> metrics;
  for (const auto& [name, value] : json["eval"].items()) {
    if (value.is_number()) metrics.push_back(absl::StrCat(name, " ", FormatMetric(value.get<double>())));
  }
  std::string line = "evaluation";
  if (json.contains("step") && json["step"].is_number_unsigned()) {
    absl::StrAppend(&line, " at step ", json["step"].get<uint64_t>());
  }
  return OneLine(absl::StrCat(line, ": ", absl::StrJoin(metrics, ", ")));
}

std::string ModelLine(const v1::Model& model, int width) {
  std::string line = "importing";
  if (model.bytes_total() > 0) {
    const double share = static_cast<double>(model.bytes_done()) / static_cast<double>(model.bytes_total());
    absl::StrAppend(&line, " ", ProgressBar(share, 24), absl::StrFormat(" %3.0f%%  ", std::floor(share * 100)),
                    FormatBytes(model.bytes_done()), " / ", FormatBytes(model.bytes_total()));
  }
  if (!model.status_message().empty()) absl::StrAppend(&line, "  ", OneLine(model.status_message()));
  return Fit(line, width);
}

}  // namespace qst
