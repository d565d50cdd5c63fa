// Reading JSON without exceptions, with errors that name the field.
#ifndef QST_WORKER_TEXT_JSON_UTIL_H_
#define QST_WORKER_TEXT_JSON_UTIL_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "nlohmann/json.hpp"

namespace qst {

// Errors  kInvalidArgument: not JSON; the message says at which byte.
absl::StatusOr<nlohmann::json> ParseJson(absl::string_view text);

// The member, or null if `object` is not an object, lacks it, or has JSON's null there.
const nlohmann::json* FindMember(const nlohmann::json& object, const std::string& key);

// Typed members. A missing (or null) one gives the fallback; without fallback it is kInvalidArgument, as
// is a value of another type.
absl::StatusOr<std::string> GetString(const nlohmann::json& object, const std::string& key);
absl::StatusOr<std::string> GetString(const nlohmann::json& object, const std::string& key, absl::string_view fallback);
absl::StatusOr<bool> GetBool(const nlohmann::json& object, const std::string& key, bool fallback);
absl::StatusOr<int64_t> GetInt(const nlohmann::json& object, const std::string& key);
absl::StatusOr<int64_t> GetInt(const nlohmann::json& object, const std::string& key, int64_t fallback);

// The text as a JSON string with its quotes; invalid UTF-8 becomes U+FFFD.
std::string ToJsonString(absl::string_view text);

}  // namespace qst

#endif  // QST_WORKER_TEXT_JSON_UTIL_H_
