// What a command is, and what it may touch while it runs.
#ifndef QST_CLIENT_COMMAND_H_
#define QST_CLIENT_COMMAND_H_

#include <functional>
#include <istream>
#include <optional>
#include <ostream>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "client/coordinator_client.h"
#include "client/flags.h"

namespace qst {

// The process around the commands; tests put their own here.
struct Environment {
  std::istream& in;
  std::ostream& out;
  std::ostream& err;
  // Whether out is a terminal, and its columns.
  bool is_terminal = false;
  int width = 80;
  // Whether Ctrl-C may be caught while a command waits.
  bool catch_interrupts = false;
  // Must be set.
  std::function<std::optional<std::string>(const std::string&)> getenv = nullptr;
};

struct CommandContext {
  Environment& env;
  const ParsedArgs& args;
  bool json;
  absl::Duration timeout;
  CoordinatorClient& client;
};

struct Command {
  // "model import"
  std::string name;
  // One line for the list of commands.
  std::string summary;
  // Positional arguments as help shows them: "PATH".
  std::string arguments;
  size_t min_arguments = 0;
  size_t max_arguments = 0;
  std::vector<FlagSpec> flags;
  // Further paragraphs of --help; may be empty.
  std::string details;
  // Command lines that work, without the "  " in front.
  std::vector<std::string> examples;
  // An error is printed as one line by the caller, and decides the exit status (client/errors.h).
  std::function<absl::Status(CommandContext&)> run;
};

// One function per file of commands.
std::vector<Command> ClusterCommands();
std::vector<Command> ModelCommands();
std::vector<Command> DatasetCommands();
std::vector<Command> SubmitCommands();
std::vector<Command> JobCommands();
std::vector<Command> PullCommands();
std::vector<Command> GenerateCommands();
std::vector<Command> TokenizeCommands();

}  // namespace qst

#endif  // QST_CLIENT_COMMAND_H_
