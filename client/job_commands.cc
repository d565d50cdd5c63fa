// jobs, get, watch, logs, cancel.
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "client/command.h"
#include "client/coordinator_client.h"
#include "client/errors.h"
#include "client/follow_job.h"
#include "client/format.h"
#include "client/interrupt.h"
#include "client/progress_view.h"
#include "client/proto_json.h"
#include "client/resolve.h"
#include "client/spec_fields.h"
#include "client/spec_to_yaml.h"
#include "proto/support/status_macros.h"

namespace qst {
namespace {

// After so long without an event, what the coordinator had to say has been said.
constexpr absl::Duration kLogsIdle = absl::Milliseconds(700);

std::string JobDuration(const v1::Job& job) {
  if (job.started_ms() == 0) return "-";
  const int64_t end = job.finished_ms() != 0 ? job.finished_ms() : absl::ToUnixMillis(absl::Now());
  return FormatSeconds(static_cast<double>(end - job.started_ms()) / 1000);
}

std::string MetricsText(const v1::JobProgress& progress) {
  std::vector<std::pair<std::string, double>> metrics(progress.eval_metrics().begin(), progress.eval_metrics().end());
  std::sort(metrics.begin(), metrics.end());
  return absl::StrJoin(metrics, ", ", [](std::string* out, const auto& metric) {
    absl::StrAppend(out, OneLine(metric.first), " ", FormatMetric(metric.second));
  });
}

std::string StepText(const v1::JobProgress& progress) {
  return progress.total_steps() == 0 ? "-" : absl::StrCat(progress.step(), "/", progress.total_steps());
}

absl::StatusOr<std::vector<v1::JobState>> ParseStates(const std::string& text) {
  std::vector<v1::JobState> states;
  for (absl::string_view name : absl::StrSplit(text, ',', absl::SkipEmpty())) {
    v1::JobState state;
    if (!v1::JobState_Parse("JOB_STATE_" + absl::AsciiStrToUpper(name), &state) || state == v1::JOB_STATE_UNSPECIFIED) {
      return UsageError(absl::StrCat("--state: '", name,
                                     "' is none of queued, preparing, running, evaluating, "
                                     "succeeded, failed, cancelled"));
    }
    states.push_back(state);
  }
  return states;
}

// "cuda" of DEVICE_KIND_CUDA; a number that this program does not know as it is.
std::string ShortName(const google::protobuf::EnumDescriptor* type, int value) {
  const auto* const known = type->FindValueByNumber(value);
  return known == nullptr ? absl::StrCat(value) : EnumShortName(known);
}

absl::Status RunJobs(CommandContext& context) {
  v1::ListJobsRequest request;
  QST_ASSIGN_OR_RETURN(const std::vector<v1::JobState> states, ParseStates(context.args.String("state")));
  for (v1::JobState state : states) request.add_states(state);
  request.set_limit(static_cast<uint32_t>(std::min<uint64_t>(context.args.Uint("limit"), UINT32_MAX)));
  QST_ASSIGN_OR_RETURN(const v1::ListJobsResponse response, context.client.ListJobs(request));
  if (context.json) {
    context.env.out << ProtoToJsonLine(response) << std::endl;
    return absl::OkStatus();
  }
  if (response.jobs().empty()) {
    context.env.out << "no jobs" << (states.empty() ? "; submit one with `qst submit -f job.yaml`" : "") << "\n";
    return absl::OkStatus();
  }
  std::vector<std::vector<std::string>> rows = {
      {"JOB", "NAME", "MODEL", "STATE", "STEP", "LOSS", "EVALUATION", "TIME", "CREATED"}};
  for (const v1::Job& job : response.jobs()) {
    const std::string metrics = MetricsText(job.progress());
    rows.push_back({job.id(), job.spec().name(), job.spec().model(), StateName(job.state()), StepText(job.progress()),
                    job.progress().has_loss() ? FormatMetric(job.progress().loss()) : "-",
                    metrics.empty() ? "-" : metrics, JobDuration(job), FormatTime(job.created_ms())});
  }
  context.env.out << FormatTable(rows, {4, 5, 7});
  return absl::OkStatus();
}

void AddPlacement(const v1::Placement& placement, std::vector<std::vector<std::string>>* rows) {
  const auto need = [](uint64_t bytes) { return bytes == 0 ? "" : absl::StrCat("  needs ", FormatBytes(bytes)); };
  if (placement.device() != v1::DEVICE_KIND_UNSPECIFIED) {
    rows->push_back({"device", ShortName(v1::DeviceKind_descriptor(), placement.device())});
  }
  if (placement.data_plane() != v1::DATA_PLANE_UNSPECIFIED) {
    rows->push_back({"data plane", ShortName(v1::DataPlane_descriptor(), placement.data_plane())});
  }
  for (const v1::PlacedStage& stage : placement.stages()) {
    rows->push_back({absl::StrCat("stage ", stage.stage()),
                     absl::StrCat(stage.worker_id(), "  layers ", stage.first_layer(), " to ",
                                  stage.first_layer() + stage.num_layers() - 1, need(stage.memory_bytes()))});
  }
  if (!placement.side_worker_id().empty()) {
    rows->push_back({"side network", placement.side_worker_id() + need(placement.side_memory_bytes())});
  }
}

absl::Status RunGet(CommandContext& context) {
  QST_ASSIGN_OR_RETURN(const std::string id, ResolveJob(context.args.positional[0], context.client));
  QST_ASSIGN_OR_RETURN(const v1::GetJobResponse response, context.client.GetJob(id));
  if (context.json) {
    context.env.out << ProtoToJsonLine(response) << std::endl;
    return absl::OkStatus();
  }
  const v1::Job& job = response.job();
  if (context.args.Bool("spec")) {
    context.env.out << SpecToYaml(job.spec());
    return absl::OkStatus();
  }
  std::vector<std::vector<std::string>> rows = {{"job", job.id()}, {"state", StateName(job.state())}};
  if (!job.status_message().empty()) rows.push_back({"status", OneLine(job.status_message())});
  rows.push_back({"created", FormatTime(job.created_ms())});
  rows.push_back({"started", FormatTime(job.started_ms())});
  rows.push_back({"finished", FormatTime(job.finished_ms())});
  rows.push_back({"time", JobDuration(job)});
  rows.push_back({"attempt", absl::StrCat(job.attempt())});
  rows.push_back({"step", StepText(job.progress())});
  rows.push_back({"epoch", absl::StrFormat("%.2f", job.progress().epoch())});
  if (job.progress().has_loss()) rows.push_back({"loss", FormatMetric(job.progress().loss())});
  if (job.progress().tokens_per_second() > 0) {
    rows.push_back({"speed", absl::StrFormat("%.0f tokens/s", job.progress().tokens_per_second())});
  }
  const std::string metrics = MetricsText(job.progress());
  if (!metrics.empty()) rows.push_back({"evaluation", metrics});
  AddPlacement(job.placement(), &rows);
  context.env.out << FormatTable(rows) << "spec\n" << SpecToYaml(job.spec(), 2);
  return absl::OkStatus();
}

absl::Status RunWatch(CommandContext& context) {
  QST_ASSIGN_OR_RETURN(const std::string id, ResolveJob(context.args.positional[0], context.client));
  // Fails at once where there is no such job, or no coordinator.
  QST_RETURN_IF_ERROR(context.client.GetJob(id).status());
  return FollowJob(context, id);
}

absl::Status RunLogs(CommandContext& context) {
  QST_ASSIGN_OR_RETURN(const std::string id, ResolveJob(context.args.positional[0], context.client));
  QST_RETURN_IF_ERROR(context.client.GetJob(id).status());
  CallCanceller canceller;
  FollowOptions options;
  options.canceller = &canceller;
  options.reconnect_for = context.args.Duration("reconnect-for");
  if (!context.args.Bool("follow")) options.idle_limit = kLogsIdle;
  InterruptScope interrupts(context.env.catch_interrupts, [&canceller] { canceller.Cancel(); });
  const absl::Status status = context.client.WatchJob(id, 0, options, [&](const v1::JobEvent& event) {
    if (!event.has_state() && event.kind_case() != v1::JobEvent::kMessage) return;
    if (context.json) {
      nlohmann::ordered_json line;
      line["event"] = ProtoToJson(event);
      context.env.out << JsonLine(line) << std::endl;
      return;
    }
    const std::string text = event.has_state()
                                 ? absl::StrCat(StateName(event.state().to()), "  ", event.state().message())
                                 : event.message();
    context.env.out << FormatTime(event.time_ms()) << "  " << OneLine(text) << std::endl;
  });
  return absl::IsCancelled(status) ? absl::OkStatus() : status;
}

absl::Status RunCancel(CommandContext& context) {
  QST_ASSIGN_OR_RETURN(const std::string id, ResolveJob(context.args.positional[0], context.client));
  QST_ASSIGN_OR_RETURN(const v1::CancelJobResponse response, context.client.CancelJob(id));
  if (context.json) {
    context.env.out << ProtoToJsonLine(response) << std::endl;
  } else if (IsFinal(response.job().state())) {
    context.env.out << id << " is " << StateName(response.job().state()) << std::endl;
  } else {
    context.env.out << id << " is being cancelled" << std::endl;
  }
  return absl::OkStatus();
}

Command JobCommand(const std::string& name, const std::string& summary, absl::Status (*run)(CommandContext&)) {
  Command command;
  command.name = name;
  command.summary = summary;
  command.arguments = "JOB";
  command.min_arguments = command.max_arguments = 1;
  command.details = "JOB is an id, the beginning of one, or a name (its newest job).";
  command.run = run;
  return command;
}

}  // namespace

std::vector<Command> JobCommands() {
  Command jobs;
  jobs.name = "jobs";
  jobs.summary = "List jobs, newest first";
  jobs.flags = {{"state", 0, FlagKind::kString, "STATES", "", "only these, such as queued,running"},
                {"limit", 'n', FlagKind::kUint, "N", "100", "at most so many"}};
  jobs.examples = {"qst jobs", "qst jobs --state=running --json"};
  jobs.run = RunJobs;

  Command get = JobCommand("get", "Show a job: state, progress, placement, spec", RunGet);
  get.flags = {{"spec", 0, FlagKind::kBool, "", "", "only the spec, as a job file"}};
  get.examples = {"qst get j-0a1b2c3d", "qst get topics --spec > job.yaml"};

  Command watch = JobCommand("watch", "Follow a job until its end", RunWatch);
  watch.flags = {ReconnectFlag()};
  watch.details +=
      "\nExit status: 0 if the job succeeded, 1 if it failed or was cancelled, or on Ctrl-C, which stops\n"
      "the watching and not the job. A restart of the coordinator is waited for.";
  watch.examples = {"qst watch topics", "qst watch j-0a1b --json"};

  Command logs = JobCommand("logs", "Print a job's messages and state changes", RunLogs);
  logs.flags = {{"follow", 'f', FlagKind::kBool, "", "", "go on until the job's end"}, ReconnectFlag()};
  logs.examples = {"qst logs topics", "qst logs -f topics"};

  Command cancel = JobCommand("cancel", "Stop a job", RunCancel);
  cancel.examples = {"qst cancel topics"};
  return {jobs, get, watch, logs, cancel};
}

}  // namespace qst
