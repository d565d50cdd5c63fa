// tokenize.
#include <fstream>
#include <istream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "client/command.h"
#include "client/coordinator_client.h"
#include "client/describe_view.h"
#include "client/errors.h"
#include "client/format.h"
#include "client/proto_json.h"
#include "proto/support/status_macros.h"

namespace qst {
namespace {

// As much as the coordinator takes in one request.
constexpr size_t kMaxTextBytes = 128 << 10;

absl::StatusOr<std::string> ReadText(std::istream& in, const std::string& what) {
  std::string text;
  char buffer[4096];
  while (in.read(buffer, sizeof buffer), in.gcount() > 0) {
    text.append(buffer, static_cast<size_t>(in.gcount()));
    if (text.size() > kMaxTextBytes) {
      return absl::InvalidArgumentError(
          absl::StrCat(what, ": more than ", kMaxTextBytes, " bytes; give a shorter text"));
    }
  }
  if (in.bad()) return absl::DataLossError(absl::StrCat(what, ": cannot read"));
  return text;
}

absl::StatusOr<std::string> Text(CommandContext& context) {
  const ParsedArgs& args = context.args;
  if (args.Has("file")) {
    if (!args.positional.empty()) return UsageError("give TEXT or --file, not both");
    std::ifstream file(args.String("file"), std::ios::binary);
    if (!file) return absl::NotFoundError(absl::StrCat(args.String("file"), ": cannot open"));
    return ReadText(file, args.String("file"));
  }
  if (args.positional.empty() || args.positional[0] == "-") return ReadText(context.env.in, "standard input");
  return args.positional[0];
}

absl::Status RunTokenize(CommandContext& context) {
  v1::TokenizeRequest request;
  if (context.args.String("model").empty()) return UsageError("say whose tokenizer: --model=NAME");
  request.set_model(context.args.String("model"));
  request.set_no_special(context.args.Bool("no-special"));
  QST_ASSIGN_OR_RETURN(*request.mutable_text(), Text(context));
  QST_ASSIGN_OR_RETURN(const v1::TokenizeResponse response, context.client.Tokenize(request));
  if (context.json) {
    context.env.out << ProtoToJsonLine(response) << std::endl;
    return absl::OkStatus();
  }
  if (context.args.Bool("ids")) {
    context.env.out << absl::StrJoin(response.tokens(), " ", [](std::string* out, const auto& token) {
      absl::StrAppend(out, token.id());
    }) << std::endl;
    return absl::OkStatus();
  }
  std::vector<std::vector<std::string>> rows = {{"ID", "TOKEN"}};
  for (const auto& token : response.tokens()) rows.push_back({absl::StrCat(token.id()), VisibleText(token.token())});
  context.env.out << FormatTable(rows, {0}) << response.tokens_size() << " tokens" << std::endl;
  return absl::OkStatus();
}

}  // namespace

std::vector<Command> TokenizeCommands() {
  Command tokenize;
  tokenize.name = "tokenize";
  tokenize.summary = "Show the tokens of a text";
  tokenize.arguments = "[TEXT|-]";
  tokenize.max_arguments = 1;
  tokenize.flags = {
      {"model", 'm', FlagKind::kString, "NAME", "", "model in the store whose tokenizer to use"},
      {"file", 'f', FlagKind::kString, "FILE", "", "text file, taken as it is"},
      {"ids", 0, FlagKind::kBool, "", "", "print the ids alone, on one line"},
      {"no-special", 0, FlagKind::kBool, "", "", "without what the tokenizer adds, such as a begin-of-text token"},
  };
  tokenize.details =
      "Without TEXT and --file, or with -, the text is standard input, line ends included; at most 128 KiB. Special\n"
      "tokens that the text spells out are recognised. Tokens are shown as the tokenizer's file spells them.";
  tokenize.examples = {"qst tokenize --model=smollm2 'Once upon a time'",
                       "printf 'hello' | qst tokenize --model=smollm2 --ids"};
  tokenize.run = RunTokenize;
  return {tokenize};
}

}  // namespace qst
