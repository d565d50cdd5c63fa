// The command line: global flags, choice of the command, help, exit status.
#ifndef QST_CLIENT_CLI_H_
#define QST_CLIENT_CLI_H_

#include <string>
#include <vector>

#include "client/command.h"

namespace qst {

// Runs `qst args...`; returns the exit status (client/errors.h). Errors are printed as one line on env.err: as
// "qst COMMAND: message", with --json as {"error": {"code": ..., "message": ...}}.
int RunCli(const std::vector<std::string>& args, Environment& env);

// All commands, in the order of the list of commands.
std::vector<Command> AllCommands();

}  // namespace qst

#endif  // QST_CLIENT_CLI_H_
