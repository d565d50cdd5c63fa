#include "worker/text/json_util.h"

#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/support/status_macros.h"

namespace qst {
namespace {

using nlohmann::json;

absl::Status Missing(const std::string& key) { return absl::InvalidArgumentError(absl::StrCat("no \"", key, "\"")); }

absl::Status WrongType(const std::string& key, absl::string_view wanted, const json& value) {
  return absl::InvalidArgumentError(absl::StrCat("\"", key, "\" is ", value.type_name(), ", not ", wanted));
}

}  // namespace

absl::StatusOr<json> ParseJson(absl::string_view text) {
  try {
    return json::parse(text.begin(), text.end());
  } catch (const json::parse_error& error) {
    return absl::InvalidArgumentError(absl::StrCat("not JSON: mistake at byte ", error.byte));
  } catch (const json::exception& error) {
    return absl::InvalidArgumentError(absl::StrCat("not JSON: ", error.what()));
  }
}

const json* FindMember(const json& object, const std::string& key) {
  if (!object.is_object()) return nullptr;
  const auto it = object.find(key);
  return it == object.end() || it->is_null() ? nullptr : &*it;
}

absl::StatusOr<std::string> GetString(const json& object, const std::string& key) {
  const json* value = FindMember(object, key);
  if (value == nullptr) return Missing(key);
  if (!value->is_string()) return WrongType(key, "a string", *value);
  return value->get_ref<const std::string&>();
}

absl::StatusOr<std::string> GetString(const json& object, const std::string& key, absl::string_view fallback) {
  if (FindMember(object, key) == nullptr) return std::string(fallback);
  return GetString(object, key);
}

absl::StatusOr<bool> GetBool(const json& object, const std::string& key, bool fallback) {
  const json* value = FindMember(object, key);
  if (value == nullptr) return fallback;
  if (!value->is_boolean()) return WrongType(key, "a boolean", *value);
  return value->get<bool>();
}

absl::StatusOr<int64_t> GetInt(const json& object, const std::string& key) {
  const json* value = FindMember(object, key);
  if (value == nullptr) return Missing(key);
  if (!value->is_number_integer()) return WrongType(key, "an integer", *value);
  if (value->is_number_unsigned() && value->get<uint64_t>() > std::numeric_limits<int64_t>::max()) {
    return absl::InvalidArgumentError(absl::StrCat("\"", key, "\" is too large"));
  }
  return value->get<int64_t>();
}

absl::StatusOr<int64_t> GetInt(const json& object, const std::string& key, int64_t fallback) {
  if (FindMember(object, key) == nullptr) return fallback;
  return GetInt(object, key);
}

std::string ToJsonString(absl::string_view text) {
  return json(std::string(text)).dump(-1, ' ', false, json::error_handler_t::replace);
}

}  // namespace qst
