// pull.
#include "absl/strings/str_cat.h"
#include "client/command.h"
#include "client/coordinator_client.h"
#include "client/format.h"
#include "client/proto_json.h"
#include "client/resolve.h"
#include "client/result_writer.h"
#include "proto/support/status_macros.h"

namespace qst {
namespace {

absl::Status RunPull(CommandContext& context) {
  QST_ASSIGN_OR_RETURN(const std::string id, ResolveJob(context.args.positional[0], context.client));
  const std::string folder = context.args.Has("output") ? context.args.String("output") : id;
  ResultWriter writer(folder);
  QST_RETURN_IF_ERROR(context.client.DownloadResults(
      id, [&writer](const v1::DownloadResultsResponse& piece) { return writer.Write(piece); }));
  QST_RETURN_IF_ERROR(writer.Finish());
  if (writer.files().empty()) return absl::NotFoundError(absl::StrCat("job ", id, " has no results"));
  if (context.json) {
    nlohmann::ordered_json json;
    json["folder"] = folder;
    json["files"] = nlohmann::ordered_json::array();
    for (const WrittenFile& file : writer.files()) {
      json["files"].push_back({{"path", file.path}, {"size_bytes", file.size_bytes}});
    }
    context.env.out << JsonLine(json) << std::endl;
    return absl::OkStatus();
  }
  std::vector<std::vector<std::string>> rows;
  for (const WrittenFile& file : writer.files()) {
    rows.push_back({absl::StrCat(folder, "/", file.path), FormatBytes(file.size_bytes)});
  }
  context.env.out << FormatTable(rows, {1});
  return absl::OkStatus();
}

}  // namespace

std::vector<Command> PullCommands() {
  Command pull;
  pull.name = "pull";
  pull.summary = "Download a job's side network, config and metrics";
  pull.arguments = "JOB";
  pull.min_arguments = pull.max_arguments = 1;
  pull.flags = {{"output", 'o', FlagKind::kString, "DIR", "", "folder to write to (default: the job's id)"}};
  pull.details =
      "Writes side_network.safetensors, side_config.json, metrics.jsonl, job.yaml and what else the job has left.\n"
      "A file appears only when it is whole, and replaces one of its name. JOB is an id, the beginning of one, or\n"
      "a name (its newest job).";
  pull.examples = {"qst pull topics -o topics-result"};
  pull.run = RunPull;
  return {pull};
}

}  // namespace qst
