#include "worker/text/pre_tokenizer.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "proto/support/status_macros.h"
#include "worker/text/byte_level.h"
#include "worker/text/json_util.h"
#include "worker/text/normalizer.h"
#include "worker/text/utf8.h"

namespace qst {
namespace {

using nlohmann::json;

constexpr int kMaxDepth = 16;

}  // namespace

absl::StatusOr<PreTokenizer> PreTokenizer::FromJson(const json* component) {
  PreTokenizer result;
  if (component != nullptr) QST_RETURN_IF_ERROR(result.Append(*component, 0));
  if (!result.steps_.empty() && std::holds_alternative<SpellBytes>(result.steps_.back())) {
    result.steps_.pop_back();
    result.ends_with_byte_level_ = true;
  }
  return result;
}

absl::Status PreTokenizer::Append(const json& component, int depth) {
  if (depth > kMaxDepth) return absl::InvalidArgumentError("sequences are nested too deep");
  QST_ASSIGN_OR_RETURN(const std::string type, GetString(component, "type"));
  if (type == "Sequence") {
    const json* parts = FindMember(component, "pretokenizers");
    if (parts == nullptr || !parts->is_array()) return absl::InvalidArgumentError("no array \"pretokenizers\"");
    for (const json& part : *parts) QST_RETURN_IF_ERROR(Append(part, depth + 1));
    return absl::OkStatus();
  }
  if (type == "ByteLevel") return AppendByteLevel(component);
  if (type == "Metaspace") return AppendMetaspace(component);
  if (type == "Split") return AppendSplit(component);
  if (type == "Digits") {
    QST_ASSIGN_OR_RETURN(const bool individual, GetBool(component, "individual_digits", false));
    steps_.push_back(Split{Numbers{}, individual ? Behavior::kIsolated : Behavior::kContiguous, false});
    return absl::OkStatus();
  }
  return absl::UnimplementedError(absl::StrCat("type \"", type, "\" is not supported"));
}

absl::Status PreTokenizer::AppendByteLevel(const json& component) {
  QST_ASSIGN_OR_RETURN(const bool add_prefix_space, GetBool(component, "add_prefix_space", true));
  QST_ASSIGN_OR_RETURN(const bool use_regex, GetBool(component, "use_regex", true));
  if (add_prefix_space) steps_.push_back(Prefix{" ", false});
  if (use_regex) steps_.push_back(Split{WordPattern::kGpt2, Behavior::kIsolated, false});
  steps_.push_back(SpellBytes{});
  return absl::OkStatus();
}

absl::Status PreTokenizer::AppendMetaspace(const json& component) {
  QST_ASSIGN_OR_RETURN(const std::string replacement, GetString(component, "replacement"));
  if (replacement.empty() || Utf8CharAt(replacement, 0).num_bytes != replacement.size()) {
    return absl::InvalidArgumentError("Metaspace: \"replacement\" is not one character");
  }
  // Old files say add_prefix_space, new ones prepend_scheme.
  QST_ASSIGN_OR_RETURN(const bool add_prefix_space, GetBool(component, "add_prefix_space", true));
  QST_ASSIGN_OR_RETURN(const std::string scheme,
                       GetString(component, "prepend_scheme", add_prefix_space ? "always" : "never"));
  QST_ASSIGN_OR_RETURN(const bool split, GetBool(component, "split", true));
  steps_.push_back(ReplaceSpaces{replacement});
  if (scheme == "always" || scheme == "first") {
    steps_.push_back(Prefix{replacement, scheme == "first"});
  } else if (scheme != "never") {
    return absl::InvalidArgumentError(absl::StrCat("Metaspace: unknown prepend_scheme \"", scheme, "\""));
  }
  if (split) steps_.push_back(Split{replacement, Behavior::kMergedWithNext, false});
  return absl::OkStatus();
}

absl::Status PreTokenizer::AppendSplit(const json& component) {
  const json* pattern = FindMember(component, "pattern");
  if (pattern == nullptr) return absl::InvalidArgumentError("Split: no \"pattern\"");
  Split split;
  if (FindMember(*pattern, "Regex") != nullptr) {
    QST_ASSIGN_OR_RETURN(const std::string text, GetString(*pattern, "Regex"));
    if (const std::optional<WordPattern> known = FindWordPattern(text)) {
      split.pattern = *known;
    } else {
      QST_ASSIGN_OR_RETURN(split.pattern, Regex::Compile(text));
    }
  } else {
    QST_ASSIGN_OR_RETURN(std::string literal, GetString(*pattern, "String"));
    if (literal.empty()) return absl::InvalidArgumentError("Split: the pattern is empty");
    split.pattern = std::move(literal);
  }
  QST_ASSIGN_OR_RETURN(split.is_inverted, GetBool(component, "invert", false));
  QST_ASSIGN_OR_RETURN(const std::string name, GetString(component, "behavior"));
  if (name == "Removed") {
    split.behavior = Behavior::kRemoved;
  } else if (name == "MergedWithPrevious") {
    split.behavior = Behavior::kMergedWithPrevious;
  } else if (name == "MergedWithNext") {
    split.behavior = Behavior::kMergedWithNext;
  } else if (name == "Contiguous") {
    split.behavior = Behavior::kContiguous;
  } else if (name != "Isolated") {
    return absl::InvalidArgumentError(absl::StrCat("Split: unknown behavior \"", name, "\""));
  }
  steps_.push_back(std::move(split));
  return absl::OkStatus();
}

absl::StatusOr<std::vector<TextRange>> PreTokenizer::FindMatches(const Split& split, absl::string_view text) {
  if (const Regex* regex = std::get_if<Regex>(&split.pattern)) return regex->FindAll(text);
  std::vector<TextRange> matches;
  if (const WordPattern* words = std::get_if<WordPattern>(&split.pattern)) {
    AppendWords(*words, text, 0, &matches);
  } else if (const std::string* literal = std::get_if<std::string>(&split.pattern)) {
    for (size_t at = text.find(*literal); at != absl::string_view::npos; at = text.find(*literal, at)) {
      matches.push_back({at, at + literal->size()});
      at += literal->size();
    }
  } else {
    AppendNumbers(text, &matches);
  }
  return matches;
}

absl::Status PreTokenizer::SplitWord(const Split& split, absl::string_view word, size_t base,
                                     std::vector<TextRange>* ranges) {
  // These patterns match everything, so that nothing lies between.
  const WordPattern* words = std::get_if<WordPattern>(&split.pattern);
  if (words != nullptr && split.behavior == Behavior::kIsolated) {
    AppendWords(*words, word, base, ranges);
    return absl::OkStatus();
  }
  QST_ASSIGN_OR_RETURN(const std::vector<TextRange> matches, FindMatches(split, word));
  struct Part {
    TextRange range;
    bool is_match;
  };
  std::vector<Part> parts;
  size_t end = 0;
  for (const TextRange& match : matches) {
    if (end != match.begin) parts.push_back({{end, match.begin}, split.is_inverted});
    parts.push_back({match, !split.is_inverted});
    end = match.end;
  }
  if (end != word.size()) parts.push_back({{end, word.size()}, split.is_inverted});

  std::vector<TextRange> found;
  bool previous_is_match = false;
  switch (split.behavior) {
    case Behavior::kRemoved:
      for (const Part& part : parts) {
        if (!part.is_match) found.push_back(part.range);
      }
      break;
    case Behavior::kIsolated:
      for (const Part& part : parts) found.push_back(part.range);
      break;
    case Behavior::kContiguous:
    case Behavior::kMergedWithPrevious:
      for (const Part& part : parts) {
        const bool joins = split.behavior == Behavior::kContiguous ? part.is_match == previous_is_match
                                                                   : part.is_match && !previous_is_match;
        if (joins && !found.empty()) {
          found.back().end = part.range.end;
        } else {
          found.push_back(part.range);
        }
        previous_is_match = part.is_match;
      }
      break;
    case Behavior::kMergedWithNext:
      for (auto part = parts.rbegin(); part != parts.rend(); ++part) {
        if (part->is_match && !previous_is_match && !found.empty()) {
          found.back().begin = part->range.begin;
        } else {
          found.push_back(part->range);
        }
        previous_is_match = part->is_match;
      }
      std::reverse(found.begin(), found.end());
      break;
  }
  for (const TextRange& range : found) {
    if (range.begin != range.end) ranges->push_back({base + range.begin, base + range.end});
  }
  return absl::OkStatus();
}

void PreTokenizer::Rewrite(const Step& step, absl::string_view word, bool is_at_start, std::string* result) {
  if (const Prefix* prefix = std::get_if<Prefix>(&step)) {
    const bool applies = is_at_start || !prefix->at_start_only;
    if (applies && !absl::StartsWith(word, prefix->text)) absl::StrAppend(result, prefix->text);
    absl::StrAppend(result, word);
  } else if (const ReplaceSpaces* spaces = std::get_if<ReplaceSpaces>(&step)) {
    absl::StrAppend(result, absl::StrReplaceAll(word, {{" ", spaces->replacement}}));
  } else {
    absl::StrAppend(result, ToByteLevel(word));
  }
}

absl::Status PreTokenizer::Apply(std::string text, bool is_at_start, Words* words) const {
  words->text = std::move(text);
  words->ranges.clear();
  if (words->text.empty()) return absl::OkStatus();
  words->ranges.push_back({0, words->text.size()});
  const size_t max_bytes = MaxRewrittenBytes(words->text.size());
  std::vector<TextRange> ranges;
  for (const Step& step : steps_) {
    ranges.clear();
    if (const Split* split = std::get_if<Split>(&step)) {
      for (const TextRange& range : words->ranges) {
        const absl::string_view word(words->text.data() + range.begin, range.end - range.begin);
        QST_RETURN_IF_ERROR(SplitWord(*split, word, range.begin, &ranges));
      }
      // What a split removes in front leaves nothing at the start.
      is_at_start = is_at_start && !ranges.empty() && ranges.front().begin == 0;
    } else {
      std::string rewritten;
      rewritten.reserve(words->text.size() + words->text.size() / 4);
      for (const TextRange& range : words->ranges) {
        const absl::string_view word(words->text.data() + range.begin, range.end - range.begin);
        const size_t begin = rewritten.size();
        Rewrite(step, word, is_at_start && ranges.empty(), &rewritten);
        ranges.push_back({begin, rewritten.size()});
        if (rewritten.size() > max_bytes) {
          return absl::ResourceExhaustedError(
              absl::StrCat("its steps make more than ", max_bytes, " bytes of the text"));
        }
      }
      words->text = std::move(rewritten);
    }
    words->ranges.swap(ranges);
  }
  return absl::OkStatus();
}

}  // namespace qst
