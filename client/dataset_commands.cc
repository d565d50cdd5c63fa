// dataset add, list, rm.
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/command.h"
#include "client/coordinator_client.h"
#include "client/format.h"
#include "client/live_line.h"
#include "client/progress_view.h"
#include "client/proto_json.h"
#include "client/resolve.h"
#include "client/upload.h"
#include "proto/support/status_macros.h"

namespace qst {
namespace {

absl::Status RunAdd(CommandContext& context) {
  const std::string& path = context.args.positional[0];
  QST_ASSIGN_OR_RETURN(const FileDigest digest, DigestFile(path));
  LiveLine live(context.env.out, context.env.is_terminal && !context.json);
  const auto response = UploadFile(context.client, path, context.args.String("name"), digest, [&](uint64_t sent) {
    live.Refresh(absl::StrCat("uploading ", ProgressBar(static_cast<double>(sent) / digest.size_bytes, 24), " ",
                              FormatBytes(sent), " / ", FormatBytes(digest.size_bytes)));
  });
  live.Clear();
  QST_RETURN_IF_ERROR(response.status());
  if (context.json) {
    context.env.out << ProtoToJsonLine(*response) << std::endl;
    return absl::OkStatus();
  }
  const v1::Dataset& dataset = response->dataset();
  context.env.out << (response->already_stored() ? "already stored: " : "stored ")
                  << (dataset.name().empty() ? "" : absl::StrCat(dataset.name(), " ")) << dataset.id() << " ("
                  << FormatBytes(dataset.size_bytes()) << ")" << std::endl;
  return absl::OkStatus();
}

absl::Status RunList(CommandContext& context) {
  QST_ASSIGN_OR_RETURN(const v1::ListDatasetsResponse response, context.client.ListDatasets());
  if (context.json) {
    context.env.out << ProtoToJsonLine(response) << std::endl;
    return absl::OkStatus();
  }
  if (response.datasets().empty()) {
    context.env.out << "no data sets; add one with `qst dataset add FILE`\n";
    return absl::OkStatus();
  }
  std::vector<std::vector<std::string>> rows = {{"ID", "NAME", "FILE", "SIZE", "CREATED"}};
  for (const v1::Dataset& dataset : response.datasets()) {
    rows.push_back({dataset.id().substr(0, 16), dataset.name().empty() ? "-" : dataset.name(),
                    OneLine(dataset.file_name()), FormatBytes(dataset.size_bytes()), FormatTime(dataset.created_ms())});
  }
  context.env.out << FormatTable(rows, {3});
  return absl::OkStatus();
}

absl::Status RunRemove(CommandContext& context) {
  QST_ASSIGN_OR_RETURN(const std::string dataset, ResolveDataset(context.args.positional[0], context.client));
  QST_RETURN_IF_ERROR(context.client.DeleteDataset(dataset).status());
  if (context.json) {
    context.env.out << "{}" << std::endl;
  } else {
    context.env.out << "removed data set " << dataset << std::endl;
  }
  return absl::OkStatus();
}

}  // namespace

std::vector<Command> DatasetCommands() {
  Command add;
  add.name = "dataset add";
  add.summary = "Upload a data file";
  add.arguments = "FILE";
  add.min_arguments = add.max_arguments = 1;
  add.flags = {{"name", 0, FlagKind::kString, "NAME", "", "name by which jobs may call it"}};
  add.details = "FILE is .jsonl, .json, .csv or .tsv. Content that is stored already is kept once.";
  add.examples = {"qst dataset add train.jsonl --name=topics-train"};
  add.run = RunAdd;

  Command list;
  list.name = "dataset list";
  list.summary = "List the data sets";
  list.details = "Ids are shortened; --json has them whole.";
  list.examples = {"qst dataset list"};
  list.run = RunList;

  Command remove;
  remove.name = "dataset rm";
  remove.summary = "Remove a data set";
  remove.arguments = "NAME|ID";
  remove.min_arguments = remove.max_arguments = 1;
  remove.examples = {"qst dataset rm topics-train"};
  remove.run = RunRemove;
  return {add, list, remove};
}

}  // namespace qst
