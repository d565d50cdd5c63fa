// Access to fields of a config.json with errors that name file and field, for the files of families/.
#ifndef QST_WORKER_CHECKPOINT_CONFIG_READER_H_
#define QST_WORKER_CHECKPOINT_CONFIG_READER_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "nlohmann/json.hpp"

namespace qst {

// Fields of wrong type make an error, the first of which is kept in status(); the value is then the fallback.
class ConfigReader {
 public:
  // `object` must outlive the reader. `where` names it in messages.
  ConfigReader(const nlohmann::json& object, absl::string_view where) : object_(object), where_(where) {}

  const absl::Status& status() const { return status_; }
  const nlohmann::json& object() const { return object_; }
  const std::string& where() const { return where_; }

  // Absent and null are the same: Hugging Face writes null for "not set".
  bool Has(const char* name) const;
  // Without a fallback the field must be there.
  std::int64_t Int(const char* name) { return ReadInt(name, std::nullopt); }
  std::int64_t Int(const char* name, std::int64_t fallback) { return ReadInt(name, fallback); }
  double Double(const char* name, double fallback);
  bool Bool(const char* name, bool fallback);
  std::string String(const char* name, const std::string& fallback);
  // One number or a list of numbers; empty if absent.
  std::vector<std::int64_t> Ints(const char* name);
  // A list of strings; empty if absent.
  std::vector<std::string> Strings(const char* name);

 private:
  std::int64_t ReadInt(const char* name, std::optional<std::int64_t> fallback);
  void Fail(const std::string& message);

  const nlohmann::json& object_;
  const std::string where_;
  absl::Status status_;
};

// kInvalidArgument, with the field and the range, unless low <= value <= high. NaN is in no range.
absl::Status CheckConfigRange(absl::string_view where, absl::string_view field, std::int64_t value, std::int64_t low,
                              std::int64_t high);
absl::Status CheckConfigRange(absl::string_view where, absl::string_view field, double value, double low, double high);

// kUnimplemented: "where: what".
absl::Status UnsupportedConfig(absl::string_view where, absl::string_view what);

}  // namespace qst

#endif  // QST_WORKER_CHECKPOINT_CONFIG_READER_H_
