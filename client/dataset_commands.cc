// dataset add, list, show, rm.
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "client/atomic_file.h"
#include "client/command.h"
#include "client/coordinator_client.h"
#include "client/describe_view.h"
#include "client/errors.h"
#include "client/format.h"
#include "client/interrupt.h"
#include "client/live_line.h"
#include "client/progress_view.h"
#include "client/proto_json.h"
#include "client/resolve.h"
#include "client/spec_fields.h"
#include "client/upload.h"
#include "client/yaml_to_spec.h"
#include "proto/support/status_macros.h"

namespace qst {
namespace {

absl::StatusOr<v1::DescribeDatasetResponse> Describe(CommandContext& context,
                                                     const v1::DescribeDatasetRequest& request) {
  CallCanceller canceller;
  InterruptScope interrupts(context.env.catch_interrupts, [&canceller] { canceller.Cancel(); });
  return context.client.DescribeDataset(request, &canceller);
}

uint32_t MaxLength(const v1::DescribeDatasetRequest& request) {
  constexpr uint32_t kDefault = 512;  // the coordinator's
  return request.data().max_length() == 0 ? kDefault : request.data().max_length();
}

// Which fields of a description a flag says.
absl::Status ApplyDataFlags(const CommandContext& context, v1::DescribeDatasetRequest* request) {
  const ParsedArgs& args = context.args;
  if (args.Has("job-file")) {
    const std::string& path = args.String("job-file");
    QST_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMaxJobFileBytes));
    QST_ASSIGN_OR_RETURN(const v1::JobSpec spec, YamlToSpec(text, path));
    *request->mutable_data() = spec.data();
    *request->mutable_task() = spec.task();
    request->set_model(spec.model());
  }
  if (args.Has("model")) request->set_model(args.String("model"));
  if (args.Has("template")) request->mutable_data()->set_template_(args.String("template"));
  if (args.Has("max-length")) {
    if (args.Uint("max-length") > std::numeric_limits<uint32_t>::max()) return UsageError("--max-length: is too large");
    request->mutable_data()->set_max_length(static_cast<uint32_t>(args.Uint("max-length")));
  }
  if (args.Bool("train-on-prompt")) request->mutable_data()->set_train_on_prompt(true);
  const std::pair<const char*, const google::protobuf::EnumDescriptor*> enums[] = {
      {"format", v1::DataFormat_descriptor()}, {"task", v1::TaskType_descriptor()}};
  for (const auto& [flag, type] : enums) {
    if (!args.Has(flag)) continue;
    const auto* const value = FindEnumValue(type, args.String(flag));
    if (value == nullptr) {
      return UsageError(absl::StrCat("--", flag, ": '", args.String(flag), "' is none of ",
                                     absl::StrJoin(EnumShortNames(type), ", ")));
    }
    if (flag == std::string("format")) {
      request->mutable_data()->set_format(static_cast<v1::DataFormat>(value->number()));
    } else {
      request->mutable_task()->set_type(static_cast<v1::TaskType>(value->number()));
    }
  }
  v1::JobSpec mapped;
  *mapped.mutable_data() = request->data();
  for (const std::string& column : args.List("column")) {
    if (!ApplyAssignment(absl::StrCat("data.columns.", column), &mapped).ok()) {
      return UsageError(absl::StrCat("--column: '", column, "' is not ROLE=NAME with ROLE one of ",
                                     absl::StrJoin(FieldNames(v1::ColumnMapping::descriptor()), ", ")));
    }
  }
  *request->mutable_data() = mapped.data();
  return absl::OkStatus();
}

std::vector<FlagSpec> DataFlags() {
  return {
      {"model", 'm', FlagKind::kString, "NAME", "", "model whose tokenizer and chat template count"},
      {"format", 0, FlagKind::kString, "F", "auto", "auto, jsonl, json, csv, tsv or text"},
      {"column", 0, FlagKind::kList, "ROLE=NAME", "", "column to use, such as label=score; may be repeated"},
      {"task", 0, FlagKind::kString, "TYPE", "", "read as a job of this type: causal_lm, classification, regression"},
      {"max-length", 0, FlagKind::kUint, "N", "512", "tokens at which an example is cut"},
      {"template", 0, FlagKind::kString, "NAME", "auto", "prompt template, as data.template of a job"},
      {"train-on-prompt", 0, FlagKind::kBool, "", "", "loss on prompts too"},
      {"job-file", 'f', FlagKind::kString, "FILE", "", "job file whose model, task and data settings to take"},
  };
}

// What is in a file that has just been uploaded. A file that cannot be read is an error; that nobody is there to read
// it is none.
absl::Status PrintSummaryOfUpload(CommandContext& context, const v1::Dataset& dataset) {
  v1::DescribeDatasetRequest request;
  request.set_dataset(dataset.id());
  QST_RETURN_IF_ERROR(ApplyDataFlags(context, &request));
  const auto description = Describe(context, request);
  if (absl::IsInvalidArgument(description.status())) {
    return absl::InvalidArgumentError(absl::StrCat(description.status().message(), "; it is stored all the same (`qst ",
                                                   "dataset rm ", dataset.id().substr(0, 16), "` removes it)"));
  }
  const bool nobody_answers =
      absl::IsResourceExhausted(description.status()) || absl::IsUnavailable(description.status());
  if (nobody_answers && !IsUnreachable(description.status())) {
    if (!context.json) context.env.out << "no summary: " << OneLine(description.status().message()) << std::endl;
    return absl::OkStatus();
  }
  QST_RETURN_IF_ERROR(description.status());
  if (context.json) {
    nlohmann::ordered_json line;
    line["summary"] = ProtoToJson(*description);
    context.env.out << JsonLine(line) << std::endl;
  } else {
    PrintSummary(context.env.out, *description, MaxLength(request));
  }
  return absl::OkStatus();
}

absl::Status RunAdd(CommandContext& context) {
  const std::string& path = context.args.positional[0];
  v1::DescribeDatasetRequest checked;
  QST_RETURN_IF_ERROR(ApplyDataFlags(context, &checked));
  QST_ASSIGN_OR_RETURN(const FileDigest digest, DigestFile(path));
  LiveLine live(context.env.out, context.env.is_terminal && !context.json);
  const auto response = UploadFile(context.client, path, context.args.String("name"), digest, [&](uint64_t sent) {
    live.Refresh(absl::StrCat("uploading ", ProgressBar(static_cast<double>(sent) / digest.size_bytes, 24), " ",
                              FormatBytes(sent), " / ", FormatBytes(digest.size_bytes)));
  });
  live.Clear();
  QST_RETURN_IF_ERROR(response.status());
  const v1::Dataset& dataset = response->dataset();
  if (context.json) {
    context.env.out << ProtoToJsonLine(*response) << std::endl;
  } else {
    context.env.out << (response->already_stored() ? "already stored: " : "stored ")
                    << (dataset.name().empty() ? "" : absl::StrCat(dataset.name(), " ")) << dataset.id() << " ("
                    << FormatBytes(dataset.size_bytes()) << ")" << std::endl;
  }
  return context.args.Bool("no-summary") ? absl::OkStatus() : PrintSummaryOfUpload(context, dataset);
}

absl::Status RunShow(CommandContext& context) {
  v1::DescribeDatasetRequest request;
  QST_RETURN_IF_ERROR(ApplyDataFlags(context, &request));
  if (context.args.Uint("render") > 0 && request.model().empty()) {
    return UsageError("--render needs --model=NAME, whose tokenizer makes the tokens");
  }
  request.set_render(static_cast<uint32_t>(std::min<uint64_t>(context.args.Uint("render"), UINT32_MAX)));
  request.set_first_example(context.args.Uint("first"));
  QST_ASSIGN_OR_RETURN(*request.mutable_dataset(), ResolveDataset(context.args.positional[0], context.client));
  QST_ASSIGN_OR_RETURN(const v1::DescribeDatasetResponse description, Describe(context, request));
  if (context.json) {
    context.env.out << ProtoToJsonLine(description) << std::endl;
    return absl::OkStatus();
  }
  const v1::Dataset& dataset = description.dataset();
  context.env.out << FormatTable(
      {{"name", dataset.name().empty() ? "-" : dataset.name()},
       {"id", dataset.id()},
       {"file", absl::StrCat(OneLine(dataset.file_name()), ", ", FormatBytes(dataset.size_bytes()))}});
  PrintSummary(context.env.out, description, MaxLength(request));
  for (const auto& example : description.examples()) {
    PrintExample(context.env.out, example, description.format(), context.env.is_terminal);
  }
  context.env.out.flush();
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
  add.flags = DataFlags();
  add.flags.insert(add.flags.begin(), {"name", 0, FlagKind::kString, "NAME", "", "name by which jobs may call it"});
  add.flags.push_back({"no-summary", 0, FlagKind::kBool, "", "", "do not read what was uploaded"});
  add.details =
      "FILE is .jsonl, .json, .csv, .tsv or .txt. Content that is stored already is kept once. A worker then reads it "
      "and\n"
      "says what is in it, with --model also how many tokens. A file that cannot be read stays stored: the status is "
      "1.";
  add.examples = {"qst dataset add train.jsonl --name=topics-train",
                  "qst dataset add alpaca.jsonl --model=smollm2 --max-length=512"};
  add.run = RunAdd;

  Command list;
  list.name = "dataset list";
  list.summary = "List the data sets";
  list.details = "Ids are shortened; --json has them whole.";
  list.examples = {"qst dataset list"};
  list.run = RunList;

  Command show;
  show.name = "dataset show";
  show.summary = "Say what is in a data set, and how a model sees it";
  show.arguments = "NAME|ID";
  show.min_arguments = show.max_arguments = 1;
  show.flags = DataFlags();
  show.flags.push_back({"render", 0, FlagKind::kUint, "N", "0", "show so many examples as the model sees them"});
  show.flags.push_back({"first", 0, FlagKind::kUint, "K", "0", "the first of them, counted from 0"});
  show.details =
      "Rows, labels and, with --model, tokens. Of rendered examples, what bears loss is highlighted (in [[ ]] where "
      "there\n"
      "is no terminal); special tokens are shown as the tokenizer spells them.";
  show.examples = {"qst dataset show topics-train", "qst dataset show alpaca --model=smollm2 --render=2"};
  show.run = RunShow;

  Command remove;
  remove.name = "dataset rm";
  remove.summary = "Remove a data set";
  remove.arguments = "NAME|ID";
  remove.min_arguments = remove.max_arguments = 1;
  remove.examples = {"qst dataset rm topics-train"};
  remove.run = RunRemove;
  return {add, list, show, remove};
}

}  // namespace qst
