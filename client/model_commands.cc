// model import, list, show, export, rm.
#include <algorithm>
#include <filesystem>
#include <numeric>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "client/command.h"
#include "client/coordinator_client.h"
#include "client/errors.h"
#include "client/follow_job.h"
#include "client/format.h"
#include "client/interrupt.h"
#include "client/live_line.h"
#include "client/progress_view.h"
#include "client/proto_json.h"
#include "client/spec_fields.h"
#include "proto/support/status_macros.h"

namespace qst {
namespace {

std::string QuantizationText(const v1::Quantization& quantization) {
  const auto* value = v1::QuantizationType_descriptor()->FindValueByNumber(quantization.type());
  if (value == nullptr || value->number() == 0) return "-";
  if (quantization.type() == v1::QUANTIZATION_TYPE_NONE) return "none";
  return absl::StrCat(EnumShortName(value), "/", quantization.block_size(),
                      quantization.double_quant() ? "" : " single");
}

// Layers shown without --all.
constexpr int kShownLayers = 5;

std::string ErrorText(double error) { return absl::StrFormat("%.2f %%", 100.0 * error); }

// The layers that lost most in quantization, worst first.
void PrintLayers(std::ostream& out, const v1::Model& model, bool all) {
  if (model.layers().empty()) return;
  std::vector<int> order(static_cast<std::size_t>(model.layers_size()));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) {
    return model.layers(a).quantization_error() > model.layers(b).quantization_error();
  });
  const bool is_cut = !all && order.size() > kShownLayers;
  if (is_cut) order.resize(kShownLayers);
  std::vector<std::vector<std::string>> rows = {
      {"LAYER", "PARAMETERS", "STORED", "ERROR", "WORST WEIGHT", "ITS ERROR"}};
  for (const int i : order) {
    const v1::LayerSummary& layer = model.layers(i);
    const bool is_known = !layer.worst_tensor().empty();
    rows.push_back({absl::StrCat(i), FormatCount(layer.num_parameters()), FormatBytes(layer.stored_bytes()),
                    is_known ? ErrorText(layer.quantization_error()) : "-",
                    is_known ? OneLine(layer.worst_tensor()) : "-", is_known ? ErrorText(layer.worst_error()) : "-"});
  }
  out << "\n" << FormatTable(rows, {0, 1, 2, 3, 5});
  if (is_cut) out << model.layers_size() - kShownLayers << " more layers: --all\n";
}

void PrintModel(std::ostream& out, const v1::Model& model) {
  std::vector<std::vector<std::string>> rows = {{"name", model.name()}, {"state", StateName(model.state())}};
  if (!model.status_message().empty()) rows.push_back({"status", OneLine(model.status_message())});
  rows.push_back({"source", OneLine(model.source_path())});
  rows.push_back({"quantization", QuantizationText(model.quantization())});
  if (model.state() == v1::MODEL_STATE_READY) {
    rows.push_back({"architecture", OneLine(model.architecture())});
    rows.push_back({"layers", absl::StrCat(model.num_layers())});
    rows.push_back({"hidden size", absl::StrCat(model.hidden_size())});
    rows.push_back({"vocabulary", absl::StrCat(model.vocab_size())});
    rows.push_back({"parameters", FormatCount(model.num_parameters())});
    rows.push_back({"stored", FormatBytes(model.stored_bytes())});
    uint64_t layers_bytes = 0;
    for (const v1::LayerSummary& layer : model.layers()) layers_bytes += layer.stored_bytes();
    if (layers_bytes > 0) rows.push_back({"layers in all", FormatBytes(layers_bytes)});
    rows.push_back({"per layer", FormatBytes(model.layer_bytes())});
    rows.push_back({"embedding", FormatBytes(model.embedding_bytes())});
    rows.push_back({"head", model.head_bytes() == 0 ? "tied to the embedding" : FormatBytes(model.head_bytes())});
    // Not known of weights that came quantized.
    if (model.quantization_error() > 0) {
      rows.push_back({"quantization error", absl::StrCat(ErrorText(model.quantization_error()), " (relative RMS)")});
    }
  }
  rows.push_back({"created", FormatTime(model.created_ms())});
  out << FormatTable(rows);
}

// A valid name from the last part of a path: "SmolLM2 135M.gguf" -> "SmolLM2-135M".
std::string NameFromPath(const std::filesystem::path& path) {
  const std::string file_name = path.filename().string();
  std::string name(absl::StripSuffix(absl::StripSuffix(file_name, ".gguf"), ".bin"));
  for (char& c : name) {
    if (!absl::ascii_isalnum(c) && c != '.' && c != '_' && c != '-') c = '-';
  }
  return name.substr(0, 64);
}

absl::StatusOr<v1::ImportModelRequest> ImportRequest(const CommandContext& context) {
  const ParsedArgs& args = context.args;
  v1::ImportModelRequest request;
  std::error_code error;
  std::filesystem::path path = std::filesystem::absolute(args.positional[0], error).lexically_normal();
  if (error) return absl::InternalError(absl::StrCat(args.positional[0], ": ", error.message()));
  if (!path.has_filename() && path.has_parent_path()) path = path.parent_path();
  // Another machine's files cannot be seen from here.
  if (context.client.IsLocal() && !std::filesystem::exists(path, error)) {
    return absl::NotFoundError(
        absl::StrCat(path.string(),
                     ": no such file or folder; name a Hugging Face folder, a .gguf file or a llama2.c "
                     "checkpoint"));
  }
  request.set_source_path(path.string());
  request.set_name(args.Has("name") ? args.String("name") : NameFromPath(path));
  if (request.name().empty()) return UsageError("--name must not be empty");
  v1::Quantization* quantization = request.mutable_quantization();
  // What is not given stays open: the default, or what the model comes with.
  if (args.Has("quantization")) {
    const auto* type = FindEnumValue(v1::QuantizationType_descriptor(), args.String("quantization"));
    if (type == nullptr) {
      return UsageError(absl::StrCat("--quantization: '", args.String("quantization"), "' is none of ",
                                     absl::StrJoin(EnumShortNames(v1::QuantizationType_descriptor()), ", ")));
    }
    quantization->set_type(static_cast<v1::QuantizationType>(type->number()));
  }
  if (quantization->type() != v1::QUANTIZATION_TYPE_NONE) {
    if (args.Uint("block-size") > 4096) return UsageError("--block-size: one of 64, 128, ... 4096");
    if (args.Has("block-size")) quantization->set_block_size(static_cast<uint32_t>(args.Uint("block-size")));
    if (args.Has("no-double-quant")) quantization->set_double_quant(!args.Bool("no-double-quant"));
  }
  request.set_replace(args.Bool("replace"));
  return request;
}

absl::Status RunImport(CommandContext& context) {
  QST_ASSIGN_OR_RETURN(const v1::ImportModelRequest request, ImportRequest(context));
  QST_ASSIGN_OR_RETURN(const v1::ImportModelResponse started, context.client.ImportModel(request));
  const std::string name = started.model().name();
  LiveLine live(context.env.out, context.env.is_terminal && !context.json);
  CallCanceller canceller;
  FollowOptions options;
  options.reconnect_for = context.args.Duration("reconnect-for");
  options.canceller = &canceller;
  options.on_notice = [&](const std::string& notice) {
    if (!context.json) live.Print(notice);
  };
  absl::StatusOr<v1::Model> model = absl::UnknownError("");
  std::string last_status;
  int last_tenth = -1;
  {
    InterruptScope interrupts(context.env.catch_interrupts, [&canceller] { canceller.Cancel(); });
    model = context.client.WatchModel(name, options, [&](const v1::Model& now) {
      if (context.json) {
        nlohmann::ordered_json line;
        line["model"] = ProtoToJson(now);
        context.env.out << JsonLine(line) << std::endl;
      } else if (now.state() == v1::MODEL_STATE_IMPORTING) {
        live.Refresh(ModelLine(now, context.env.width));
        // Without a terminal: what it waits for, then a line for every tenth.
        const int tenth = now.bytes_total() == 0 ? -1 : static_cast<int>(10 * now.bytes_done() / now.bytes_total());
        if (!context.env.is_terminal && tenth < 0 && now.status_message() != last_status) {
          live.Print(absl::StrCat("importing: ", OneLine(now.status_message())));
        } else if (!context.env.is_terminal && tenth > last_tenth) {
          live.Print(absl::StrCat("importing: ", 10 * tenth, "%  ", FormatBytes(now.bytes_done()), " / ",
                                  FormatBytes(now.bytes_total())));
        }
        last_tenth = std::max(last_tenth, tenth);
        last_status = now.status_message();
      }
    });
  }
  live.Clear();
  if (absl::IsCancelled(model.status())) {
    return absl::CancelledError(absl::StrCat("stopped watching; the import goes on: `qst model show ", name, "`"));
  }
  QST_RETURN_IF_ERROR(model.status());
  if (model->state() == v1::MODEL_STATE_FAILED) {
    return absl::AbortedError(absl::StrCat("import of ", name, " failed: ", OneLine(model->status_message())));
  }
  if (!context.json) PrintModel(context.env.out, *model);
  return absl::OkStatus();
}

absl::Status RunList(CommandContext& context) {
  QST_ASSIGN_OR_RETURN(const v1::ListModelsResponse response, context.client.ListModels());
  if (context.json) {
    context.env.out << ProtoToJsonLine(response) << std::endl;
    return absl::OkStatus();
  }
  if (response.models().empty()) {
    context.env.out << "no models; import one with `qst model import PATH`\n";
    return absl::OkStatus();
  }
  std::vector<std::vector<std::string>> rows = {
      {"MODEL", "STATE", "ARCHITECTURE", "PARAMETERS", "LAYERS", "HIDDEN", "QUANTIZATION", "STORED"}};
  for (const v1::Model& model : response.models()) {
    const bool ready = model.state() == v1::MODEL_STATE_READY;
    rows.push_back({model.name(), StateName(model.state()), ready ? OneLine(model.architecture()) : "-",
                    ready ? FormatCount(model.num_parameters()) : "-", ready ? absl::StrCat(model.num_layers()) : "-",
                    ready ? absl::StrCat(model.hidden_size()) : "-", QuantizationText(model.quantization()),
                    ready ? FormatBytes(model.stored_bytes()) : "-"});
  }
  context.env.out << FormatTable(rows, {3, 4, 5, 7});
  return absl::OkStatus();
}

absl::Status RunShow(CommandContext& context) {
  QST_ASSIGN_OR_RETURN(const v1::GetModelResponse response, context.client.GetModel(context.args.positional[0]));
  if (context.json) {
    context.env.out << ProtoToJsonLine(response) << std::endl;
  } else {
    PrintModel(context.env.out, response.model());
    PrintLayers(context.env.out, response.model(), context.args.Bool("all"));
  }
  return absl::OkStatus();
}

absl::StatusOr<v1::ExportModelRequest> ExportRequest(const CommandContext& context) {
  const ParsedArgs& args = context.args;
  v1::ExportModelRequest request;
  request.set_name(args.positional[0]);
  std::error_code error;
  std::filesystem::path path = std::filesystem::absolute(args.positional[1], error).lexically_normal();
  if (error) return absl::InternalError(absl::StrCat(args.positional[1], ": ", error.message()));
  if (!path.has_filename() && path.has_parent_path()) path = path.parent_path();
  request.set_destination_path(path.string());
  request.set_dequantize(args.Bool("dequantize"));
  if (args.Has("dtype")) {
    const std::string& dtype = args.String("dtype");
    if (dtype != "f32" && dtype != "bf16" && dtype != "f16") {
      return UsageError(absl::StrCat("--dtype: '", dtype, "' is none of f32, bf16, f16"));
    }
    if (!request.dequantize()) return UsageError("--dtype is of dequantized weights: give --dequantize, too");
    request.set_dtype(dtype);
  }
  return request;
}

absl::Status RunExport(CommandContext& context) {
  QST_ASSIGN_OR_RETURN(const v1::ExportModelRequest request, ExportRequest(context));
  LiveLine live(context.env.out, context.env.is_terminal && !context.json);
  CallCanceller canceller;
  std::string path;
  int last_tenth = -1;
  absl::Status status;
  {
    InterruptScope interrupts(context.env.catch_interrupts, [&canceller] { canceller.Cancel(); });
    status = context.client.ExportModel(request, &canceller, [&](const v1::ExportModelResponse& now) {
      path = now.path();
      if (context.json) {
        context.env.out << ProtoToJsonLine(now) << std::endl;
        return;
      }
      if (!path.empty() || now.bytes_total() == 0) return;
      const double share = static_cast<double>(now.bytes_done()) / static_cast<double>(now.bytes_total());
      const std::string bytes = absl::StrCat(FormatBytes(now.bytes_done()), " / ", FormatBytes(now.bytes_total()));
      live.Refresh(Fit(absl::StrCat("exporting ", ProgressBar(share, 24), " ", bytes), context.env.width));
      // Without a terminal: a line for every tenth.
      const int tenth = static_cast<int>(10 * share);
      if (!context.env.is_terminal && tenth > last_tenth) {
        live.Print(absl::StrCat("exporting: ", 10 * tenth, "%  ", bytes));
      }
      last_tenth = std::max(last_tenth, tenth);
    });
  }
  live.Clear();
  if (absl::IsCancelled(status)) return absl::CancelledError("stopped; nothing was written");
  QST_RETURN_IF_ERROR(status);
  if (!context.json) context.env.out << "exported " << request.name() << " to " << path << std::endl;
  return absl::OkStatus();
}

absl::Status RunRemove(CommandContext& context) {
  const std::string& name = context.args.positional[0];
  QST_RETURN_IF_ERROR(context.client.DeleteModel(name).status());
  if (context.json) {
    context.env.out << "{}" << std::endl;
  } else {
    context.env.out << "removed model " << name << std::endl;
  }
  return absl::OkStatus();
}

}  // namespace

std::vector<Command> ModelCommands() {
  Command import;
  import.name = "model import";
  import.summary = "Quantize a model and put it into the store";
  import.arguments = "PATH";
  import.min_arguments = import.max_arguments = 1;
  import.flags = {
      {"name", 0, FlagKind::kString, "NAME", "", "name in the store (default: from the path)"},
      {"quantization", 0, FlagKind::kString, "TYPE", "nf4", "nf4, fp4 or none"},
      {"block-size", 0, FlagKind::kUint, "N", "64", "elements that share one scale: 64, 128, ... 4096"},
      {"no-double-quant", 0, FlagKind::kBool, "", "", "keep the scales in float32"},
      {"replace", 0, FlagKind::kBool, "", "", "replace a model of this name"},
      ReconnectFlag(),
  };
  import.details =
      "PATH is a Hugging Face folder, a .gguf file or a llama2.c checkpoint, as the workers see it. "
      "Weights that bitsandbytes has quantized already are kept as they are.";
  import.examples = {"qst model import SmolLM2-135M-Instruct.gguf --name=smollm2"};
  import.run = RunImport;

  Command list;
  list.name = "model list";
  list.summary = "List the models in the store";
  list.examples = {"qst model list"};
  list.run = RunList;

  Command show;
  show.name = "model show";
  show.summary = "Show one model, and what quantization cost in each layer";
  show.arguments = "NAME";
  show.min_arguments = show.max_arguments = 1;
  show.flags = {{"all", 0, FlagKind::kBool, "", "", "all layers, not just those with the largest errors"}};
  show.examples = {"qst model show smollm2 --all"};
  show.run = RunShow;

  Command export_model;
  export_model.name = "model export";
  export_model.summary = "Write a model of the store as a Hugging Face folder";
  export_model.arguments = "NAME PATH";
  export_model.min_arguments = export_model.max_arguments = 2;
  export_model.flags = {
      {"dequantize", 0, FlagKind::kBool, "", "", "plain floats, those that the backbone computes with"},
      {"dtype", 0, FlagKind::kString, "TYPE", "f32", "of dequantized weights: f32, bf16 or f16"},
  };
  export_model.details =
      "PATH is a folder to be made, as the workers see it. Without --dequantize, 4-bit weights keep their codes, in "
      "the\n"
      "layout of bitsandbytes. Ctrl-C stops the export and leaves nothing behind.";
  export_model.examples = {"qst model export smollm2 ~/models/smollm2-nf4",
                           "qst model export smollm2 ~/models/smollm2-bf16 --dequantize --dtype=bf16"};
  export_model.run = RunExport;

  Command remove;
  remove.name = "model rm";
  remove.summary = "Remove a model from the store";
  remove.arguments = "NAME";
  remove.min_arguments = remove.max_arguments = 1;
  remove.examples = {"qst model rm smollm2"};
  remove.run = RunRemove;
  return {import, list, show, export_model, remove};
}

}  // namespace qst
