// One message of a conversation, in the forms in which data sets have them.
#ifndef QST_WORKER_TEXT_CHAT_MESSAGE_H_
#define QST_WORKER_TEXT_CHAT_MESSAGE_H_

#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"
#include "worker/text/dataset.h"

namespace qst {

// {"role", "content"} as OpenAI has it, with content as text or a list of parts, and tool_calls; or {"from", "value"}
// as ShareGPT has it. Roles are brought to the names that ChatMessage lists. Errors  kInvalidArgument: a member is
// missing or of another type; it is named.
absl::StatusOr<ChatMessage> ParseChatMessage(const nlohmann::json& entry);

}  // namespace qst

#endif  // QST_WORKER_TEXT_CHAT_MESSAGE_H_
