// generate.
#include <iterator>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "client/command.h"
#include "client/coordinator_client.h"
#include "client/errors.h"
#include "client/interrupt.h"
#include "client/proto_json.h"
#include "client/resolve.h"
#include "client/spec_fields.h"
#include "client/utf8.h"
#include "proto/support/status_macros.h"

namespace qst {
namespace {

constexpr size_t kMaxPromptBytes = 1 << 20;

// A model can write any character; escape sequences must not reach the terminal.
std::string WithoutControls(const std::string& text) {
  std::string shown = text;
  for (char& c : shown) {
    if ((static_cast<unsigned char>(c) < 0x20 && c != '\n' && c != '\t') || c == 0x7f) c = '?';
  }
  return shown;
}

absl::StatusOr<uint32_t> Uint32Flag(const ParsedArgs& args, absl::string_view name) {
  if (args.Uint(name) > UINT32_MAX) return UsageError(absl::StrCat("--", name, ": at most ", UINT32_MAX));
  return static_cast<uint32_t>(args.Uint(name));
}

absl::StatusOr<v1::GenerateRequest> Request(CommandContext& context) {
  const ParsedArgs& args = context.args;
  if (args.String("model").empty() && args.String("job").empty()) {
    return UsageError("say what to run: --model=NAME, or --job=JOB for a finetuned model");
  }
  v1::GenerateRequest request;
  request.set_model(args.String("model"));
  if (args.Has("prompt")) {
    request.set_prompt(args.String("prompt"));
  } else {
    std::string prompt;
    char buffer[4096];
    while (context.env.in.read(buffer, sizeof buffer), context.env.in.gcount() > 0) {
      prompt.append(buffer, context.env.in.gcount());
      if (prompt.size() > kMaxPromptBytes) break;
    }
    // The line end that every tool writes is not part of the text.
    if (!prompt.empty() && prompt.back() == '\n') prompt.pop_back();
    request.set_prompt(prompt);
  }
  // An empty --prompt is a wish: the text then starts from the model's begin-of-text token alone.
  if (request.prompt().empty() && !args.Has("prompt")) {
    return UsageError("the prompt is empty; give it with --prompt or on standard input");
  }
  if (request.prompt().size() > kMaxPromptBytes) {
    return UsageError(absl::StrCat("the prompt is larger than ", kMaxPromptBytes, " bytes"));
  }
  if (!IsValidUtf8(request.prompt())) return UsageError("the prompt is not text in UTF-8");
  QST_ASSIGN_OR_RETURN(const uint32_t max_new_tokens, Uint32Flag(args, "max-new-tokens"));
  QST_ASSIGN_OR_RETURN(const uint32_t stages, Uint32Flag(args, "stages"));
  QST_ASSIGN_OR_RETURN(const uint32_t workers, Uint32Flag(args, "workers"));
  if (max_new_tokens == 0) return UsageError("--max-new-tokens: at least 1");
  if (args.Double("temperature") < 0) return UsageError("--temperature: 0 (greedy) or more");
  request.set_max_new_tokens(max_new_tokens);
  request.set_temperature(args.Double("temperature"));
  request.set_seed(args.Uint("seed"));
  request.set_template_(args.String("template"));
  request.mutable_resources()->set_stages(stages);
  request.mutable_resources()->set_workers(workers);
  const auto* const device = FindEnumValue(v1::DeviceKind_descriptor(), args.String("device"));
  if (device == nullptr) {
    return UsageError(absl::StrCat("--device: '", args.String("device"), "' is none of ",
                                   absl::StrJoin(EnumShortNames(v1::DeviceKind_descriptor()), ", ")));
  }
  request.mutable_resources()->set_device(static_cast<v1::DeviceKind>(device->number()));
  if (!args.String("job").empty()) {
    QST_ASSIGN_OR_RETURN(*request.mutable_job_id(), ResolveJob(args.String("job"), context.client));
  }
  return request;
}

absl::Status RunGenerate(CommandContext& context) {
  QST_ASSIGN_OR_RETURN(const v1::GenerateRequest request, Request(context));
  CallCanceller canceller;
  std::vector<int32_t> ids;
  bool ends_line = true;
  absl::Status status;
  {
    InterruptScope interrupts(context.env.catch_interrupts, [&canceller] { canceller.Cancel(); });
    status = context.client.Generate(request, &canceller, [&](const v1::GenerateResponse& response) {
      if (context.json) {
        context.env.out << ProtoToJsonLine(response) << std::endl;
        return;
      }
      ids.insert(ids.end(), response.token_ids().begin(), response.token_ids().end());
      if (response.text().empty()) return;
      context.env.out << (context.env.is_terminal ? WithoutControls(response.text()) : response.text()) << std::flush;
      ends_line = response.text().back() == '\n';
    });
  }
  if (!context.json) {
    if (!ends_line) context.env.out << "\n";
    if (context.args.Bool("show-ids")) context.env.out << "token ids: " << absl::StrJoin(ids, " ") << "\n";
    context.env.out.flush();
  }
  return status;
}

}  // namespace

std::vector<Command> GenerateCommands() {
  Command generate;
  generate.name = "generate";
  generate.summary = "Continue a prompt with a model or a finished job";
  generate.flags = {
      {"model", 'm', FlagKind::kString, "NAME", "", "model in the store"},
      {"job", 'j', FlagKind::kString, "JOB", "", "finished job whose side network to use"},
      {"prompt", 'p', FlagKind::kString, "TEXT", "", "text to continue (default: standard input)"},
      {"max-new-tokens", 'n', FlagKind::kUint, "N", "128", "stop after so many"},
      {"temperature", 't', FlagKind::kDouble, "T", "0", "0 = always the likeliest token"},
      {"seed", 0, FlagKind::kUint, "N", "0", "of sampling"},
      {"template", 0, FlagKind::kString, "NAME", "",
       "prompt template: auto (with --job the one it was trained with), alpaca, chatml, llama2, llama3, ... (default: the "
       "prompt as it is)"},
      {"stages", 0, FlagKind::kUint, "N", "0", "pipeline stages; 0 = by the free workers"},
      {"workers", 0, FlagKind::kUint, "N", "0", "worker processes; 0 = by the stages"},
      {"device", 0, FlagKind::kString, "KIND", "auto", "workers to run on: auto, cpu or cuda"},
      {"show-ids", 0, FlagKind::kBool, "", "", "print the token ids after the text"},
  };
  generate.examples = {"qst generate --model=smollm2 --prompt='Once upon a time' --max-new-tokens=50",
                       "echo 'Name three colours.' | qst generate --job=alpaca --template=auto"};
  generate.run = RunGenerate;
  return {generate};
}

}  // namespace qst
