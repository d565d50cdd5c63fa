#include "worker/text/normalizer.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "proto/support/status_macros.h"
#include "worker/text/json_util.h"

namespace qst {
namespace {

using nlohmann::json;

constexpr int kMaxDepth = 16;

}  // namespace

absl::StatusOr<ReplaceStep> ReplaceStep::FromJson(const json& component) {
  ReplaceStep step;
  QST_ASSIGN_OR_RETURN(step.content_, GetString(component, "content"));
  const json* pattern = FindMember(component, "pattern");
  if (pattern == nullptr) return absl::InvalidArgumentError("Replace: no \"pattern\"");
  if (FindMember(*pattern, "Regex") != nullptr) {
    QST_ASSIGN_OR_RETURN(const std::string text, GetString(*pattern, "Regex"));
    QST_ASSIGN_OR_RETURN(step.regex_, Regex::Compile(text));
    return step;
  }
  QST_ASSIGN_OR_RETURN(step.literal_, GetString(*pattern, "String"));
  if (step.literal_.empty()) return absl::InvalidArgumentError("Replace: the pattern is empty");
  return step;
}

absl::StatusOr<std::string> ReplaceStep::Apply(absl::string_view text) const {
  if (!regex_.has_value()) return absl::StrReplaceAll(text, {{literal_, content_}});
  QST_ASSIGN_OR_RETURN(const std::vector<TextRange> matches, regex_->FindAll(text));
  std::string result;
  size_t end = 0;
  for (const TextRange& match : matches) {
    absl::StrAppend(&result, text.substr(end, match.begin - end), content_);
    end = match.end;
  }
  absl::StrAppend(&result, text.substr(end));
  return result;
}

absl::StatusOr<Normalizer> Normalizer::FromJson(const json* component) {
  Normalizer normalizer;
  if (component != nullptr) QST_RETURN_IF_ERROR(normalizer.Append(*component, 0));
  return normalizer;
}

absl::Status Normalizer::Append(const json& component, int depth) {
  if (depth > kMaxDepth) return absl::InvalidArgumentError("sequences are nested too deep");
  QST_ASSIGN_OR_RETURN(const std::string type, GetString(component, "type"));
  if (type == "Sequence") {
    const json* parts = FindMember(component, "normalizers");
    if (parts == nullptr || !parts->is_array()) return absl::InvalidArgumentError("no array \"normalizers\"");
    for (const json& part : *parts) QST_RETURN_IF_ERROR(Append(part, depth + 1));
    return absl::OkStatus();
  }
  Step step;
  if (type == "Prepend") {
    QST_ASSIGN_OR_RETURN(step.prepend, GetString(component, "prepend"));
  } else if (type == "Replace") {
    QST_ASSIGN_OR_RETURN(step.replace, ReplaceStep::FromJson(component));
  } else {
    return absl::UnimplementedError(absl::StrCat("type \"", type, "\" is not supported"));
  }
  steps_.push_back(std::move(step));
  return absl::OkStatus();
}

absl::StatusOr<std::string> Normalizer::Apply(absl::string_view text) const {
  std::string result(text);
  for (const Step& step : steps_) {
    if (step.replace.has_value()) {
      QST_ASSIGN_OR_RETURN(result, step.replace->Apply(result));
    } else if (!result.empty()) {
      result.insert(0, step.prepend);
    }
  }
  return result;
}

}  // namespace qst
