#include "worker/text/chat_message.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/support/status_macros.h"
#include "worker/text/json_util.h"

namespace qst {
namespace {

using nlohmann::json;

std::string RoleOf(const std::string& name) {
  static constexpr std::pair<const char*, const char*> kOtherNames[] = {
      {"human", "user"},         {"gpt", "assistant"},    {"bot", "assistant"},          {"model", "assistant"},
      {"chatgpt", "assistant"},  {"observation", "tool"}, {"function", "tool"},          {"function_response", "tool"},
      {"tool_response", "tool"}, {"ipython", "tool"},     {"tool_call", "function_call"}};
  for (const auto& [other, role] : kOtherNames) {
    if (name == other) return role;
  }
  return name;
}

// The texts among the parts.
absl::StatusOr<std::string> JoinParts(const json& parts) {
  std::string text;
  for (const json& part : parts) {
    if (part.is_string()) {
      text += part.get_ref<const std::string&>();
      continue;
    }
    QST_ASSIGN_OR_RETURN(const std::string type, GetString(part, "type"));
    if (type != "text") {
      return absl::InvalidArgumentError(
          absl::StrCat("\"content\" has a part of type \"", type, "\"; only text is read"));
    }
    QST_ASSIGN_OR_RETURN(const std::string piece, GetString(part, "text"));
    text += piece;
  }
  return text;
}

// What is nested deeper cannot be written as text again without as deep a recursion.
constexpr int kMaxDepth = 64;

bool IsDeeperThan(int depth, const json& value) {
  if (!value.is_structured()) return false;
  if (depth == 0) return true;
  return std::any_of(value.begin(), value.end(), [depth](const json& child) { return IsDeeperThan(depth - 1, child); });
}

// A line for each call: {"name": ..., "arguments": ...}.
absl::StatusOr<std::string> CallsText(const json& calls) {
  if (!calls.is_array()) return absl::InvalidArgumentError("\"tool_calls\" is not a list");
  std::string text;
  for (const json& call : calls) {
    const json* function = FindMember(call, "function");
    if (function == nullptr || !function->is_object()) {
      return absl::InvalidArgumentError("\"tool_calls\" has an entry without \"function\"");
    }
    QST_ASSIGN_OR_RETURN(const std::string name, GetString(*function, "name"));
    const json* arguments = FindMember(*function, "arguments");
    // Text that is JSON itself, or JSON.
    std::string arguments_text = "{}";
    if (arguments != nullptr) {
      if (IsDeeperThan(kMaxDepth, *arguments)) {
        return absl::InvalidArgumentError(
            absl::StrCat("\"arguments\" of a tool call is nested deeper than ", kMaxDepth, " levels"));
      }
      arguments_text = arguments->is_string() ? arguments->get_ref<const std::string&>()
                                              : arguments->dump(-1, ' ', false, json::error_handler_t::replace);
    }
    absl::StrAppend(&text, text.empty() ? "" : "\n", "{\"name\": ", ToJsonString(name),
                    ", \"arguments\": ", arguments_text, "}");
  }
  return text;
}

}  // namespace

absl::StatusOr<ChatMessage> ParseChatMessage(const json& entry) {
  if (FindMember(entry, "from") != nullptr) {
    QST_ASSIGN_OR_RETURN(const std::string role, GetString(entry, "from"));
    QST_ASSIGN_OR_RETURN(std::string value, GetString(entry, "value"));
    return ChatMessage{RoleOf(role), std::move(value)};
  }
  QST_ASSIGN_OR_RETURN(const std::string role, GetString(entry, "role"));
  ChatMessage message{RoleOf(role), ""};
  const json* content = FindMember(entry, "content");
  const json* calls = FindMember(entry, "tool_calls");
  if (content == nullptr && calls != nullptr) {
    QST_ASSIGN_OR_RETURN(message.content, CallsText(*calls));
  } else if (content != nullptr && content->is_array()) {
    QST_ASSIGN_OR_RETURN(message.content, JoinParts(*content));
  } else {
    QST_ASSIGN_OR_RETURN(message.content, GetString(entry, "content"));
  }
  return message;
}

}  // namespace qst
