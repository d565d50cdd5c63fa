// submit.
#include <sys/stat.h>

#include <filesystem>
#include <iterator>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "client/atomic_file.h"
#include "client/command.h"
#include "client/coordinator_client.h"
#include "client/errors.h"
#include "client/follow_job.h"
#include "client/format.h"
#include "client/progress_view.h"
#include "client/proto_json.h"
#include "client/resolve.h"
#include "client/upload.h"
#include "client/yaml_to_spec.h"
#include "proto/support/status_macros.h"

namespace qst {
namespace {

absl::StatusOr<v1::JobSpec> ReadJobFile(CommandContext& context, const std::string& path) {
  if (path == "-") {
    std::string text(std::istreambuf_iterator<char>(context.env.in), {});
    return YamlToSpec(text, "standard input");
  }
  const absl::StatusOr<std::string> text = ReadFile(path, kMaxJobFileBytes);
  if (!text.ok()) return text.status();
  return YamlToSpec(*text, path);
}

bool IsFile(const std::filesystem::path& path) {
  std::error_code error;
  return std::filesystem::is_regular_file(path, error);
}

// The local file that a data field names: as seen from here, or from the job file's folder. "" = none: an id or name.
absl::StatusOr<std::string> FindDataFile(const std::string& field, const std::string& value,
                                         const std::filesystem::path& job_folder) {
  if (value.empty()) return "";
  if (IsFile(value)) return value;
  const std::filesystem::path beside = job_folder / value;
  if (!job_folder.empty() && IsFile(beside)) return beside.string();
  if (absl::StrContains(value, "/")) {
    // Names and ids have no slash.
    return absl::NotFoundError(absl::StrCat(field, ": ", value, ": no such file"));
  }
  return "";
}

// Uploads the local file that *value names, if it is one, and puts its id in place.
absl::Status UploadIfLocal(CommandContext& context, const std::string& field, const std::filesystem::path& job_folder,
                           std::string* value) {
  QST_ASSIGN_OR_RETURN(const std::string path, FindDataFile(field, *value, job_folder));
  if (path.empty()) {
    // The list of data sets shows ids shortened.
    if (!value->empty()) {
      QST_ASSIGN_OR_RETURN(*value, ResolveDataset(*value, context.client));
    }
    return absl::OkStatus();
  }
  const absl::StatusOr<FileDigest> digest = DigestFile(path);
  if (!digest.ok()) return WithContext(digest.status(), field);
  // A sweep submits the same file many times.
  QST_ASSIGN_OR_RETURN(const v1::ListDatasetsResponse stored, context.client.ListDatasets());
  for (const v1::Dataset& dataset : stored.datasets()) {
    if (dataset.id() == digest->sha256) {
      *value = dataset.id();
      return absl::OkStatus();
    }
  }
  const auto response = UploadFile(context.client, path, "", *digest, [](uint64_t) {});
  if (!response.ok()) return WithContext(response.status(), absl::StrCat(field, ": upload of ", path));
  *value = response->dataset().id();
  if (!context.json) {
    context.env.err << "uploaded " << path << " (" << FormatBytes(digest->size_bytes) << ")" << std::endl;
  }
  return absl::OkStatus();
}

absl::Status RunSubmit(CommandContext& context) {
  const ParsedArgs& args = context.args;
  const std::string& file = args.String("file");
  if (file.empty() && args.List("set").empty()) {
    return UsageError("nothing to submit; give a job file with -f job.yaml, or fields with --set model=NAME ...");
  }
  v1::JobSpec spec;
  std::filesystem::path job_folder;
  if (!file.empty()) {
    QST_ASSIGN_OR_RETURN(spec, ReadJobFile(context, file));
    if (file != "-") job_folder = std::filesystem::path(file).parent_path();
  }
  for (const std::string& assignment : args.List("set")) QST_RETURN_IF_ERROR(ApplyAssignment(assignment, &spec));
  if (spec.model().empty()) return UsageError("no model; name one with model: in the job file or --set model=NAME");
  if (spec.data().train().empty()) {
    return UsageError("no training data; name a file with data: {train: ...} in the job file or --set data.train=FILE");
  }
  QST_RETURN_IF_ERROR(UploadIfLocal(context, "data.train", job_folder, spec.mutable_data()->mutable_train()));
  QST_RETURN_IF_ERROR(UploadIfLocal(context, "data.eval", job_folder, spec.mutable_data()->mutable_eval()));
  QST_ASSIGN_OR_RETURN(const v1::SubmitJobResponse response, context.client.SubmitJob(spec));
  context.env.out << (context.json ? ProtoToJsonLine(response) : response.job().id()) << std::endl;
  return args.Bool("watch") ? FollowJob(context, response.job().id()) : absl::OkStatus();
}

}  // namespace

std::vector<Command> SubmitCommands() {
  Command submit;
  submit.name = "submit";
  submit.summary = "Submit a finetuning job; prints its id";
  submit.flags = {
      {"file", 'f', FlagKind::kString, "FILE", "", "job file in YAML; - = standard input"},
      {"set", 0, FlagKind::kList, "KEY=VALUE", "", "set one field, such as train.epochs=1; lists as a,b,c; repeatable"},
      {"watch", 'w', FlagKind::kBool, "", "", "follow the job until its end"},
      ReconnectFlag(),
  };
  submit.details =
      "Keys are the fields of JobSpec (proto/qst/v1/job_spec.proto), where their defaults are. data.train and\n"
      "data.eval may name local files, as seen from here or from the job file's folder: they are uploaded first.\n"
      "With --watch, the exit status is 0 if the job succeeded and 1 if it failed or was cancelled.";
  submit.examples = {"qst submit -f job.yaml --watch",
                     "qst submit -f job.yaml --set train.learning_rate=1e-3 --set name=faster",
                     "qst submit --set model=smollm2 --set data.train=train.jsonl --set task.type=causal_lm"};
  submit.run = RunSubmit;
  return {submit};
}

}  // namespace qst
