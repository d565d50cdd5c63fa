// qst: the command-line client.
#include <sys/ioctl.h>
#include <unistd.h>

#include <cstdlib>
#include <iostream>
#include <optional>
#include <string>
#include <vector>

#include "client/cli.h"

int main(int argc, char** argv) {
  qst::Environment env{std::cin, std::cout, std::cerr};
  env.is_terminal = isatty(STDOUT_FILENO) != 0;
  winsize size = {};
  if (env.is_terminal && ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) env.width = size.ws_col;
  env.catch_interrupts = true;
  env.getenv = [](const std::string& name) -> std::optional<std::string> {
    const char* value = std::getenv(name.c_str());
    if (value == nullptr) return std::nullopt;
    return value;
  };
  return qst::RunCli(std::vector<std::string>(argv + 1, argv + argc), env);
}
