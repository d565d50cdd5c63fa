#include "worker/text/normalizer.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/support/status_macros.h"
#include "worker/text/json_util.h"
#include "worker/text/utf8.h"

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

absl::StatusOr<std::string> ReplaceStep::Apply(absl::string_view text, size_t max_bytes) const {
  std::string result;
  result.reserve(text.size() + text.size() / 2);
  // Appends what lies before a match, and what replaces it.
  auto append = [&](absl::string_view before) {
    if (before.size() + content_.size() > max_bytes - result.size()) return false;
    absl::StrAppend(&result, before, content_);
    return true;
  };
  const absl::Status too_long = absl::ResourceExhaustedError(
      absl::StrCat("replacing makes more than ", max_bytes, " bytes of a text of ", text.size(), " bytes"));
  size_t done = 0;
  if (regex_.has_value()) {
    QST_ASSIGN_OR_RETURN(const std::vector<TextRange> matches, regex_->FindAll(text));
    for (const TextRange& match : matches) {
      if (!append(text.substr(done, match.begin - done))) return too_long;
      done = match.end;
    }
  } else {
    for (size_t at = text.find(literal_); at != absl::string_view::npos; at = text.find(literal_, done)) {
      if (!append(text.substr(done, at - done))) return too_long;
      done = at + literal_.size();
    }
  }
  absl::StrAppend(&result, text.substr(done));
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
  if (type == "Prepend") {
    QST_ASSIGN_OR_RETURN(std::string text, GetString(component, "prepend"));
    steps_.push_back(Prepend{std::move(text)});
  } else if (type == "Replace") {
    QST_ASSIGN_OR_RETURN(ReplaceStep step, ReplaceStep::FromJson(component));
    steps_.push_back(std::move(step));
  } else if (type == "Strip") {
    Strip strip;
    QST_ASSIGN_OR_RETURN(strip.left, GetBool(component, "strip_left", true));
    QST_ASSIGN_OR_RETURN(strip.right, GetBool(component, "strip_right", true));
    steps_.push_back(strip);
  } else if (type == "Lowercase") {
    steps_.push_back(Lowercase{});
  } else if (type == "StripAccents") {
    steps_.push_back(StripAccents{});
  } else if (type == "NFC") {
    steps_.push_back(NormalForm::kNfc);
  } else if (type == "NFD") {
    steps_.push_back(NormalForm::kNfd);
  } else if (type == "NFKC") {
    steps_.push_back(NormalForm::kNfkc);
  } else if (type == "NFKD") {
    steps_.push_back(NormalForm::kNfkd);
  } else {
    return absl::UnimplementedError(absl::StrCat("type \"", type, "\" is not supported"));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> Normalizer::ApplyStep(const Step& step, std::string text, size_t max_bytes) {
  if (const Prepend* prepend = std::get_if<Prepend>(&step)) {
    if (!text.empty()) text.insert(0, prepend->text);
    return text;
  }
  if (const Strip* strip = std::get_if<Strip>(&step)) {
    if (strip->right) text.resize(TrailingSpaceStart(text));
    if (strip->left) text.erase(0, LeadingSpaceEnd(text));
    return text;
  }
  if (std::holds_alternative<Lowercase>(step)) return ToLowercase(text);
  if (std::holds_alternative<StripAccents>(step)) return RemoveMarks(text);
  if (const NormalForm* form = std::get_if<NormalForm>(&step)) return ToNormalForm(*form, text);
  return std::get<ReplaceStep>(step).Apply(text, max_bytes);
}

absl::StatusOr<std::string> Normalizer::Apply(absl::string_view text) const {
  std::string result(text);
  for (const Step& step : steps_) {
    QST_ASSIGN_OR_RETURN(result, ApplyStep(step, std::move(result), MaxRewrittenBytes(text.size())));
  }
  return result;
}

}  // namespace qst
