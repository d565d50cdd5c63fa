// up, down, workers.
#include <sys/stat.h>

#include <filesystem>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "client/command.h"
#include "client/coordinator_client.h"
#include "client/errors.h"
#include "client/format.h"
#include "client/interrupt.h"
#include "client/local_cluster.h"
#include "client/progress_view.h"
#include "client/proto_json.h"
#include "proto/support/status_macros.h"

namespace qst {
namespace {

FlagSpec StoreFlag() {
  return {"store", 0,  FlagKind::kString,
          "DIR",   "", "folder of jobs, models and data sets (default: the one used last, else ~/.local/share/qst)"};
}

absl::StatusOr<std::string> StorePath(const CommandContext& context) {
  std::string store = context.args.String("store");
  if (store.empty()) store = CurrentStore(context.env.getenv);
  if (store.empty()) return UsageError("no home folder for the store; name a folder with --store=DIR");
  std::error_code error;
  const std::filesystem::path path = std::filesystem::absolute(store, error).lexically_normal();
  if (error) return absl::InternalError(absl::StrCat("--store: ", store, ": ", error.message()));
  // Normal form keeps a final slash, which would make two names of one folder.
  return path.has_filename() || path == path.root_path() ? path.string() : path.parent_path().string();
}

nlohmann::ordered_json UpJson(const UpResult& up) {
  nlohmann::ordered_json json;
  json["address"] = up.state.address;
  json["store"] = up.state.store;
  json["started"] = up.started;
  json["members"] = nlohmann::ordered_json::array();
  for (const ClusterMember& member : up.state.members) {
    json["members"].push_back({{"name", member.name}, {"pid", member.process.pid}, {"log", member.log_path}});
  }
  return json;
}

// Stays until Ctrl-C or until a member ends, then stops all.
absl::Status StayInForeground(CommandContext& context, const UpResult& up) {
  CallCanceller canceller;
  InterruptScope interrupts(context.env.catch_interrupts, [&canceller] { canceller.Cancel(); });
  std::string ended;
  while (!canceller.cancelled() && ended.empty()) {
    for (const ClusterMember& member : up.state.members) {
      if (!up.state.IsMemberAlive(member.name)) ended = member.name;
    }
    absl::SleepFor(absl::Milliseconds(200));
  }
  const auto say = [&](const std::string& line) { context.env.err << line << std::endl; };
  QST_RETURN_IF_ERROR(BringDown(up.state.store, absl::Seconds(15), say).status());
  if (ended.empty()) return absl::OkStatus();
  return absl::UnknownError(absl::StrCat(ended, " ended; stopped the others; see ", up.state.Find(ended)->log_path));
}

absl::Status RunUp(CommandContext& context) {
  const ParsedArgs& args = context.args;
  UpOptions options;
  QST_ASSIGN_OR_RETURN(options.store, StorePath(context));
  if (args.Has("listen")) options.listen = args.String("listen");
  if (args.Has("workers")) options.num_workers = args.Uint("workers");
  if (args.Has("threads-per-worker")) options.threads_per_worker = args.Uint("threads-per-worker");
  if (args.Has("device")) {
    options.device = args.String("device");
    if (*options.device != "auto" && *options.device != "cpu" && *options.device != "cuda") {
      return UsageError(absl::StrCat("--device: '", *options.device, "' is none of auto, cpu, cuda"));
    }
  }
  if (args.Has("gpus")) {
    options.num_gpus = args.Uint("gpus");
    if (*options.num_gpus < 1 || *options.num_gpus > 64) return UsageError("--gpus: from 1 to 64");
    if (options.device.value_or("") != "cuda") return UsageError("--gpus: goes with --device=cuda");
  }
  if (options.num_workers > 1000) return UsageError("--workers: at most 1000");
  if (options.threads_per_worker && (*options.threads_per_worker < 1 || *options.threads_per_worker > 4096)) {
    return UsageError("--threads-per-worker: from 1 to 4096");
  }
  options.bin_dir = args.String("bin-dir");
  options.path = context.env.getenv("PATH").value_or("");
  options.wait = args.Duration("wait");
  const auto say = [&](const std::string& line) { context.env.err << line << std::endl; };
  QST_ASSIGN_OR_RETURN(const UpResult up, BringUp(options, say));
  const absl::Status remembered = SetCurrentStore(context.env.getenv, up.state.store);
  if (!remembered.ok()) {
    say(absl::StrCat("cannot remember this cluster (", remembered.message(),
                     "); use --coordinator=", up.state.address));
  }
  if (context.json) {
    context.env.out << JsonLine(UpJson(up)) << std::endl;
  } else {
    if (up.started.empty()) {
      context.env.out << "the cluster is up already\n";
    } else if (up.started.size() < up.state.members.size()) {
      context.env.out << "started what was missing: " << absl::StrJoin(up.started, ", ") << "\n";
    }
    context.env.out << "coordinator  " << up.state.address << "\n"
                    << "workers      " << up.state.members.size() - 1 << " with " << up.state.threads_per_worker
                    << (up.state.threads_per_worker == 1 ? " thread" : " threads") << " each\n"
                    << "store        " << up.state.store << "\n"
                    << "logs         " << up.state.store << "/logs\n";
    context.env.out.flush();
  }
  return args.Bool("foreground") ? StayInForeground(context, up) : absl::OkStatus();
}

absl::Status RunDown(CommandContext& context) {
  QST_ASSIGN_OR_RETURN(const std::string store, StorePath(context));
  const auto say = [&](const std::string& line) { context.env.err << line << std::endl; };
  QST_ASSIGN_OR_RETURN(const int stopped, BringDown(store, context.args.Duration("wait"), say));
  if (context.json) {
    context.env.out << JsonLine({{"store", store}, {"stopped", stopped}}) << std::endl;
  } else if (stopped == 0) {
    context.env.out << "no cluster is up with the store " << store << std::endl;
  } else {
    context.env.out << "stopped " << stopped << (stopped == 1 ? " process" : " processes") << std::endl;
  }
  return absl::OkStatus();
}

absl::Status RunWorkers(CommandContext& context) {
  QST_ASSIGN_OR_RETURN(const v1::ListWorkersResponse response, context.client.ListWorkers());
  if (context.json) {
    context.env.out << ProtoToJsonLine(response) << std::endl;
    return absl::OkStatus();
  }
  if (response.workers().empty()) {
    context.env.out << "no workers; start some with `qst up`\n";
    return absl::OkStatus();
  }
  std::vector<std::vector<std::string>> rows = {{"WORKER", "STATE", "DEVICE", "MEMORY", "NAME", "THREADS", "HOST",
                                                 "PID", "RESIDENT", "PEAK", "BUDGET", "JOB", "PARTS"}};
  for (const v1::Worker& worker : response.workers()) {
    const auto bytes = [](uint64_t n) { return n == 0 ? std::string("-") : FormatBytes(n); };
    const bool is_cpu = worker.device_memory_bytes() == 0;
    rows.push_back({worker.id(), StateName(worker.state()), OneLine(worker.device()),
                    bytes(is_cpu ? worker.memory_bytes() : worker.device_memory_bytes()),
                    worker.device_name().empty() ? "-" : OneLine(worker.device_name()),
                    absl::StrCat(worker.num_threads()), OneLine(worker.host()), absl::StrCat(worker.pid()),
                    bytes(worker.resident_bytes()), bytes(worker.peak_resident_bytes()), bytes(worker.budget_bytes()),
                    worker.job_id().empty() ? "-" : worker.job_id(),
                    worker.parts().empty() ? "-" : OneLine(absl::StrJoin(worker.parts(), ", "))});
  }
  context.env.out << FormatTable(rows, {3, 5, 7, 8, 9, 10});
  return absl::OkStatus();
}

}  // namespace

std::vector<Command> ClusterCommands() {
  Command up;
  up.name = "up";
  up.summary = "Start a local cluster: a coordinator and workers";
  up.flags = {
      {"workers", 0, FlagKind::kUint, "N", "", "worker processes (default: as many as before, else 3)"},
      {"threads-per-worker", 0, FlagKind::kUint, "N", "", "compute threads of each (default: cores / workers)"},
      {"device", 0, FlagKind::kString, "KIND", "",
       "what workers compute on: cpu, cuda, or auto: the first GPU where there is one (default: as before, else auto)"},
      {"gpus", 0, FlagKind::kUint, "N", "", "with --device=cuda: worker i takes GPU i modulo N (default: 1)"},
      StoreFlag(),
      {"listen", 0, FlagKind::kString, "HOST:PORT", "",
       "address of the coordinator; port 0 = any free one (default: 127.0.0.1:7310)"},
      {"foreground", 0, FlagKind::kBool, "", "", "stay; Ctrl-C stops the cluster"},
      {"bin-dir", 0, FlagKind::kString, "DIR", "", "where qst-coordinator and qst-worker are"},
      {"wait", 0, FlagKind::kDuration, "TIME", "60s", "until all must have come up"},
  };
  up.details =
      "Run again, it starts only what is missing: a coordinator or workers that have died. Logs are in STORE/logs.";
  up.details += "\nWorkers that share a GPU get an NCCL_HOSTID each, or NCCL would refuse them.";
  up.examples = {"qst up --workers=3", "qst up --device=cuda --gpus=8 --workers=8",
                 "qst up --store=/data/qst --listen=127.0.0.1:0"};
  up.run = RunUp;

  Command down;
  down.name = "down";
  down.summary = "Stop the local cluster";
  down.flags = {StoreFlag(),
                {"wait", 0, FlagKind::kDuration, "TIME", "15s", "until a process that does not end is killed"}};
  down.details = "Jobs, models and data sets stay in the store.";
  down.examples = {"qst down"};
  down.run = RunDown;

  Command workers;
  workers.name = "workers";
  workers.summary = "List the workers";
  workers.examples = {"qst workers", "qst workers --json"};
  workers.run = RunWorkers;
  return {up, down, workers};
}

}  // namespace qst
