#include "client/cli.h"

#include <algorithm>
#include <iterator>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "client/cluster_state.h"
#include "client/coordinator_client.h"
#include "client/errors.h"
#include "client/format.h"
#include "client/nearest_name.h"
#include "client/proto_json.h"
#include "proto/support/status_macros.h"

namespace qst {
namespace {

constexpr char kDefaultCoordinator[] = "127.0.0.1:7310";

std::vector<FlagSpec> GlobalFlags() {
  return {
      {"coordinator", 0, FlagKind::kString, "HOST:PORT", "",
       "where the coordinator is (default: $QST_COORDINATOR, else the cluster of `qst up`, else 127.0.0.1:7310)"},
      {"json", 0, FlagKind::kBool, "", "", "print JSON, one object a line"},
      {"timeout", 0, FlagKind::kDuration, "TIME", "30s", "for the answer to one request"},
      {"help", 'h', FlagKind::kBool, "", "", "explain the command"},
  };
}

std::vector<FlagSpec> WithGlobals(std::vector<FlagSpec> flags) {
  for (FlagSpec& flag : GlobalFlags()) flags.push_back(std::move(flag));
  return flags;
}

std::string GeneralHelp(const std::vector<Command>& commands) {
  std::string help =
      "qst - finetune language models by quantized side tuning\n\n"
      "Usage: qst [flags] COMMAND [arguments]\n\nCommands:\n";
  std::vector<std::vector<std::string>> rows;
  for (const Command& command : commands) {
    rows.push_back(
        {absl::StrCat("  ", command.name, command.arguments.empty() ? "" : " ", command.arguments), command.summary});
  }
  absl::StrAppend(&help, FormatTable(rows), "\nFlags of every command:\n", FlagHelp(GlobalFlags()),
                  "\nExit status: 0 done, 1 failed, 2 wrong usage, 3 coordinator unreachable.\n"
                  "\nExample:\n  qst up && qst model import model.gguf --name=m && qst submit -f job.yaml --watch\n"
                  "\n`qst COMMAND --help` explains a command, with examples.\n");
  return help;
}

std::string CommandHelp(const Command& command) {
  std::string help =
      absl::StrCat(command.summary, "\n\nUsage: qst ", command.name, command.flags.empty() ? "" : " [flags]",
                   command.arguments.empty() ? "" : " ", command.arguments, "\n");
  if (!command.details.empty()) absl::StrAppend(&help, "\n", command.details, "\n");
  if (!command.flags.empty()) absl::StrAppend(&help, "\nFlags:\n", FlagHelp(command.flags));
  absl::StrAppend(&help, "\nFlags of every command:\n", FlagHelp(GlobalFlags()), "\nExample:\n");
  for (const std::string& example : command.examples) absl::StrAppend(&help, "  ", example, "\n");
  return help;
}

// HOST:PORT with a port of 1 ... 65535.
absl::Status CheckAddress(const std::string& address, absl::string_view origin) {
  const size_t colon = address.rfind(':');
  uint32_t port = 0;
  if (colon == std::string::npos || colon == 0 || !absl::SimpleAtoi(address.substr(colon + 1), &port) || port == 0 ||
      port > 65535) {
    return UsageError(absl::StrCat(origin, ": '", OneLine(address), "' is not HOST:PORT, such as 127.0.0.1:7310"));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> CoordinatorAddress(const ParsedArgs& args, const Environment& env) {
  if (args.Has("coordinator")) {
    QST_RETURN_IF_ERROR(CheckAddress(args.String("coordinator"), "--coordinator"));
    return args.String("coordinator");
  }
  const std::string from_env = env.getenv("QST_COORDINATOR").value_or("");
  if (!from_env.empty()) {
    QST_RETURN_IF_ERROR(CheckAddress(from_env, "QST_COORDINATOR"));
    return from_env;
  }
  return CurrentAddress(env.getenv).value_or(kDefaultCoordinator);
}

class Cli {
 public:
  Cli(const std::vector<std::string>& args, Environment& env) : args_(args), env_(env), commands_(AllCommands()) {
    // Needed for the form of errors even when the flags themselves are wrong.
    for (const std::string& arg : args_) {
      if (arg == "--") break;
      if (arg == "--json" || arg == "--json=true") json_ = true;
    }
  }

  int Run() {
    absl::Status status = Dispatch();
    if (status.ok() && !env_.out.flush()) status = absl::DataLossError("cannot write to standard output");
    if (status.ok()) return kExitDone;
    if (json_) {
      nlohmann::ordered_json error;
      error["error"] = {{"code", absl::StatusCodeToString(status.code())}, {"message", std::string(status.message())}};
      env_.err << JsonLine(error) << std::endl;
    } else {
      env_.err << absl::StrCat("qst", command_name_.empty() ? "" : " ", command_name_, ": ", OneLine(status.message()))
               << std::endl;
    }
    return ExitStatus(status);
  }

 private:
  absl::Status Dispatch() {
    std::vector<std::string> rest;
    QST_ASSIGN_OR_RETURN(const ParsedArgs leading, ParseLeadingFlags(GlobalFlags(), args_, &rest));
    const size_t num_leading = args_.size() - rest.size();
    const bool asks_help = leading.Bool("help") || (!rest.empty() && rest[0] == "help");
    if (!rest.empty() && rest[0] == "help") rest.erase(rest.begin());
    if (rest.empty()) {
      if (asks_help) {
        env_.out << GeneralHelp(commands_);
        return absl::OkStatus();
      }
      return UsageError("no command; `qst --help` lists them");
    }
    QST_ASSIGN_OR_RETURN(const Command* command, FindCommand(&rest));
    if (command == nullptr) {
      env_.out << GeneralHelp(commands_);
      return absl::OkStatus();
    }
    if (asks_help) {
      env_.out << CommandHelp(*command);
      return absl::OkStatus();
    }
    // What stood before the command counts as well.
    rest.insert(rest.begin(), args_.begin(), args_.begin() + num_leading);
    return RunCommand(*command, rest);
  }

  // Takes the command's words off *rest. Null: help is asked for about a group of commands.
  absl::StatusOr<const Command*> FindCommand(std::vector<std::string>* rest) {
    const std::string first = rest->front();
    std::vector<std::string> names, below;
    for (const Command& command : commands_) {
      if (command.name == first) {
        rest->erase(rest->begin());
        command_name_ = command.name;
        return &command;
      }
      names.push_back(command.name.substr(0, command.name.find(' ')));
      if (absl::StartsWith(command.name, first + " ")) below.push_back(command.name.substr(first.size() + 1));
    }
    if (below.empty()) {
      return UsageError(absl::StrCat("unknown command '", first, "'", DidYouMean(first, names),
                                     NearestName(first, names).empty() ? "; `qst --help` lists them" : ""));
    }
    const std::string second = rest->size() > 1 ? (*rest)[1] : "";
    for (const Command& command : commands_) {
      if (command.name != absl::StrCat(first, " ", second)) continue;
      rest->erase(rest->begin(), rest->begin() + 2);
      command_name_ = command.name;
      return &command;
    }
    if (second == "--help" || second == "-h") {
      rest->clear();
      return nullptr;
    }
    if (second.empty() || second[0] == '-') {
      return UsageError(absl::StrCat("'", first, "' needs one of ", absl::StrJoin(below, ", "), " after it"));
    }
    return UsageError(absl::StrCat("unknown command '", first, " ", second, "'", DidYouMean(second, below),
                                   "; known: ", absl::StrJoin(below, ", ")));
  }

  absl::Status RunCommand(const Command& command, const std::vector<std::string>& rest) {
    absl::StatusOr<ParsedArgs> args = ParseFlags(WithGlobals(command.flags), rest);
    if (std::find(rest.begin(), rest.end(), "--help") != rest.end() || (args.ok() && args->Bool("help"))) {
      env_.out << CommandHelp(command);
      return absl::OkStatus();
    }
    if (!args.ok()) return WithHint(args.status(), command);
    if (args->positional.size() < command.min_arguments) {
      return UsageError(
          absl::StrCat("missing ", command.arguments, "; usage: qst ", command.name, " ", command.arguments));
    }
    if (args->positional.size() > command.max_arguments) {
      return UsageError(absl::StrCat("unexpected argument '", args->positional[command.max_arguments], "'; see `qst ",
                                     command.name, " --help`"));
    }
    if (args->Duration("timeout") <= absl::ZeroDuration()) return UsageError("--timeout: more than 0");
    QST_ASSIGN_OR_RETURN(const std::string address, CoordinatorAddress(*args, env_));
    CoordinatorClient client({address, args->Duration("timeout")});
    CommandContext context{env_, *args, args->Bool("json"), args->Duration("timeout"), client};
    return command.run(context);
  }

  static absl::Status WithHint(const absl::Status& status, const Command& command) {
    if (absl::StrContains(status.message(), "did you mean")) return status;
    return UsageError(absl::StrCat(status.message(), "; see `qst ", command.name, " --help`"));
  }

  const std::vector<std::string>& args_;
  Environment& env_;
  const std::vector<Command> commands_;
  std::string command_name_;
  bool json_ = false;
};

}  // namespace

std::vector<Command> AllCommands() {
  std::vector<Command> all;
  for (auto* group : {&ClusterCommands, &ModelCommands, &DatasetCommands, &SubmitCommands, &JobCommands, &PullCommands,
                      &GenerateCommands, &TokenizeCommands}) {
    std::vector<Command> commands = group();
    std::move(commands.begin(), commands.end(), std::back_inserter(all));
  }
  return all;
}

int RunCli(const std::vector<std::string>& args, Environment& env) { return Cli(args, env).Run(); }

}  // namespace qst
