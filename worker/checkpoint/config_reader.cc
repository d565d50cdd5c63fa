#include "worker/checkpoint/config_reader.h"

#include <limits>

#include "absl/strings/str_cat.h"

namespace qst {
namespace {

using Json = nlohmann::json;

bool IsInt64(const Json& value) {
  if (value.is_number_unsigned()) {
    return value.get<std::uint64_t>() <= static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
  }
  return value.is_number_integer();
}

template <typename T>
absl::Status CheckRange(absl::string_view where, absl::string_view field, T value, T low, T high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(where, ": ", field, " is ", value, ", must be from ", low, " to ", high));
}

}  // namespace

bool ConfigReader::Has(const char* name) const {
  const auto it = object_.find(name);
  return it != object_.end() && !it->is_null();
}

double ConfigReader::Double(const char* name, double fallback) {
  if (!Has(name)) return fallback;
  const Json& value = object_[name];
  if (value.is_number()) return value.get<double>();
  Fail(absl::StrCat("field '", name, "' must be a number"));
  return fallback;
}

bool ConfigReader::Bool(const char* name, bool fallback) {
  if (!Has(name)) return fallback;
  const Json& value = object_[name];
  if (value.is_boolean()) return value.get<bool>();
  Fail(absl::StrCat("field '", name, "' must be true or false"));
  return fallback;
}

std::string ConfigReader::String(const char* name, const std::string& fallback) {
  if (!Has(name)) return fallback;
  const Json& value = object_[name];
  if (value.is_string()) return value.get<std::string>();
  Fail(absl::StrCat("field '", name, "' must be a string"));
  return fallback;
}

std::vector<std::int64_t> ConfigReader::Ints(const char* name) {
  std::vector<std::int64_t> numbers;
  if (!Has(name)) return numbers;
  const Json& value = object_[name];
  if (IsInt64(value)) return {value.get<std::int64_t>()};
  bool all_integers = value.is_array();
  if (all_integers) {
    for (const Json& item : value) {
      all_integers = all_integers && IsInt64(item);
      if (all_integers) numbers.push_back(item.get<std::int64_t>());
    }
  }
  if (all_integers) return numbers;
  Fail(absl::StrCat("field '", name, "' must be an integer or a list of integers"));
  return {};
}

std::vector<std::string> ConfigReader::Strings(const char* name) {
  std::vector<std::string> strings;
  if (!Has(name)) return strings;
  const Json& value = object_[name];
  bool all_strings = value.is_array();
  if (all_strings) {
    for (const Json& item : value) {
      all_strings = all_strings && item.is_string();
      if (all_strings) strings.push_back(item.get<std::string>());
    }
  }
  if (all_strings) return strings;
  Fail(absl::StrCat("field '", name, "' must be a list of strings"));
  return {};
}

std::int64_t ConfigReader::ReadInt(const char* name, std::optional<std::int64_t> fallback) {
  if (!Has(name)) {
    if (!fallback.has_value()) Fail(absl::StrCat("field '", name, "' is missing"));
    return fallback.value_or(0);
  }
  const Json& value = object_[name];
  if (IsInt64(value)) return value.get<std::int64_t>();
  Fail(absl::StrCat("field '", name, "' must be an integer"));
  return fallback.value_or(0);
}

void ConfigReader::Fail(const std::string& message) {
  if (status_.ok()) status_ = absl::InvalidArgumentError(absl::StrCat(where_, ": ", message));
}

absl::Status CheckConfigRange(absl::string_view where, absl::string_view field, std::int64_t value, std::int64_t low,
                              std::int64_t high) {
  return CheckRange(where, field, value, low, high);
}

absl::Status CheckConfigRange(absl::string_view where, absl::string_view field, double value, double low, double high) {
  return CheckRange(where, field, value, low, high);
}

absl::Status UnsupportedConfig(absl::string_view where, absl::string_view what) {
  return absl::UnimplementedError(absl::StrCat(where, ": ", what));
}

}  // namespace qst
