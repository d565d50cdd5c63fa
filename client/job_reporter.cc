#include "client/job_reporter.h"

#include "absl/strings/str_cat.h"
#include "client/format.h"
#include "client/proto_json.h"

namespace qst {
namespace {

constexpr int64_t kProgressPeriodMs = 5000;

}  // namespace

JobReporter::JobReporter(std::ostream& out, const ReporterOptions& options)
    : out_(out), options_(options), live_(out, options.is_terminal && !options.json) {}

void JobReporter::OnEvent(const v1::JobEvent& event) {
  if (event.has_state()) {
    view_.state = event.state().to();
    view_.status_message = event.state().message();
  } else if (event.has_progress()) {
    view_.progress = event.progress();
  }
  if (options_.json) {
    nlohmann::ordered_json line;
    line["event"] = ProtoToJson(event);
    out_ << JsonLine(line) << std::endl;
    return;
  }
  switch (event.kind_case()) {
    case v1::JobEvent::kState:
      OnState(event.state());
      break;
    case v1::JobEvent::kMetricsJson: {
      const std::string line = EvaluationLine(event.metrics_json());
      if (!line.empty()) live_.Print(line);
      break;
    }
    case v1::JobEvent::kProgress:
      OnProgress(event.time_ms());
      break;
    case v1::JobEvent::kMessage:
      live_.Print(OneLine(event.message()));
      break;
    case v1::JobEvent::KIND_NOT_SET:
      break;
  }
}

void JobReporter::OnState(const v1::StateChange& change) {
  // A terminal's live line shows these two, between which a job goes back and forth.
  const bool is_shown =
      options_.is_terminal && (change.to() == v1::JOB_STATE_RUNNING || change.to() == v1::JOB_STATE_EVALUATING);
  if (!is_shown) {
    live_.Clear();
    live_.Print(absl::StrCat(StateName(change.to()), change.message().empty() ? "" : "  ", OneLine(change.message())));
  }
  if (!IsFinal(view_.state)) live_.Refresh(TerminalLine(view_, options_.width));
}

void JobReporter::OnProgress(int64_t time_ms) {
  live_.Refresh(TerminalLine(view_, options_.width));
  const v1::JobProgress& progress = view_.progress;
  if (options_.is_terminal || progress.total_steps() == 0 || progress.step() == 0) return;
  const int tenth = static_cast<int>(10 * progress.step() / progress.total_steps());
  if (tenth == last_tenth_ && time_ms - last_progress_ms_ < kProgressPeriodMs) return;
  last_tenth_ = tenth;
  last_progress_ms_ = time_ms;
  live_.Print(PlainLine(view_));
}

void JobReporter::OnNotice(const std::string& notice) {
  if (!options_.json) live_.Print(notice);
}

void JobReporter::Finish() { live_.Clear(); }

}  // namespace qst
