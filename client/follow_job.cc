#include "client/follow_job.h"

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "client/coordinator_client.h"
#include "client/format.h"
#include "client/interrupt.h"
#include "client/job_reporter.h"
#include "client/progress_view.h"
#include "client/proto_json.h"
#include "proto/support/status_macros.h"

namespace qst {

FlagSpec ReconnectFlag() {
  return {"reconnect-for", 0, FlagKind::kDuration, "TIME", "2m", "how long to try when the coordinator goes away"};
}

absl::Status FollowJob(CommandContext& context, const std::string& job_id) {
  JobReporter reporter(context.env.out, {context.json, context.env.is_terminal, context.env.width});
  CallCanceller canceller;
  FollowOptions options;
  options.reconnect_for = context.args.Duration("reconnect-for");
  options.canceller = &canceller;
  options.on_notice = [&reporter](const std::string& notice) { reporter.OnNotice(notice); };
  absl::Status status;
  {
    InterruptScope interrupts(context.env.catch_interrupts, [&canceller] { canceller.Cancel(); });
    status = context.client.WatchJob(job_id, /*after_sequence=*/0, options,
                                     [&reporter](const v1::JobEvent& event) { reporter.OnEvent(event); });
  }
  reporter.Finish();
  if (absl::IsCancelled(status)) {
    return absl::CancelledError(absl::StrCat("stopped watching; the job goes on. `qst watch ", job_id,
                                             "` follows it again, `qst cancel ", job_id, "` stops it"));
  }
  QST_RETURN_IF_ERROR(status);
  if (context.json) {
    QST_ASSIGN_OR_RETURN(const v1::GetJobResponse response, context.client.GetJob(job_id));
    context.env.out << ProtoToJsonLine(response) << std::endl;
  }
  if (reporter.state() == v1::JOB_STATE_SUCCEEDED) return absl::OkStatus();
  const std::string reason = OneLine(reporter.status_message());
  return absl::AbortedError(absl::StrCat("job ", job_id, " ", absl::AsciiStrToLower(StateName(reporter.state())),
                                         reason.empty() ? "" : ": ", reason));
}

}  // namespace qst
