#include "worker/text/pre_tokenizer.h"

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "proto/support/status_macros.h"
#include "worker/text/byte_level.h"
#include "worker/text/json_util.h"

namespace qst {
namespace {

using nlohmann::json;

constexpr int kMaxDepth = 16;

// GPT-2's words: contractions, then letters, digits or other signs with at most one space before them,
// then the remaining space.
constexpr char kGpt2Pattern[] = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

// A pattern that matches `literal` and nothing else.
std::string QuotePattern(absl::string_view literal) {
  std::string result;
  for (const char c : literal) {
    if (absl::StrContains(R"(\^$.|?*+()[]{}/#&-~)", absl::string_view(&c, 1))) result += '\\';
    result += c;
  }
  return result;
}

}  // namespace

absl::StatusOr<PreTokenizer> PreTokenizer::FromJson(const json* component) {
  PreTokenizer result;
  if (component != nullptr) QST_RETURN_IF_ERROR(result.Append(*component, 0));
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
    QST_ASSIGN_OR_RETURN(Regex pattern, Regex::Compile(R"(\p{N})"));
    steps_.push_back(Split{std::move(pattern), individual ? Behavior::kIsolated : Behavior::kContiguous, false});
    return absl::OkStatus();
  }
  return absl::UnimplementedError(absl::StrCat("type \"", type, "\" is not supported"));
}

absl::Status PreTokenizer::AppendByteLevel(const json& component) {
  QST_ASSIGN_OR_RETURN(const bool add_prefix_space, GetBool(component, "add_prefix_space", true));
  QST_ASSIGN_OR_RETURN(const bool use_regex, GetBool(component, "use_regex", true));
  if (add_prefix_space) steps_.push_back(Prefix{" ", false});
  if (use_regex) {
    QST_ASSIGN_OR_RETURN(Regex pattern, Regex::Compile(kGpt2Pattern));
    steps_.push_back(Split{std::move(pattern), Behavior::kIsolated, false});
  }
  steps_.push_back(SpellBytes{});
  return absl::OkStatus();
}

absl::Status PreTokenizer::AppendMetaspace(const json& component) {
  QST_ASSIGN_OR_RETURN(const std::string replacement, GetString(component, "replacement"));
  if (replacement.empty()) return absl::InvalidArgumentError("Metaspace: \"replacement\" is empty");
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
  if (split) {
    QST_ASSIGN_OR_RETURN(Regex pattern, Regex::Compile(QuotePattern(replacement)));
    steps_.push_back(Split{std::move(pattern), Behavior::kMergedWithNext, false});
  }
  return absl::OkStatus();
}

absl::Status PreTokenizer::AppendSplit(const json& component) {
  const json* pattern = FindMember(component, "pattern");
  if (pattern == nullptr) return absl::InvalidArgumentError("Split: no \"pattern\"");
  std::string text;
  if (FindMember(*pattern, "Regex") != nullptr) {
    QST_ASSIGN_OR_RETURN(text, GetString(*pattern, "Regex"));
  } else {
    QST_ASSIGN_OR_RETURN(const std::string literal, GetString(*pattern, "String"));
    text = QuotePattern(literal);
  }
  QST_ASSIGN_OR_RETURN(Regex regex, Regex::Compile(text));
  QST_ASSIGN_OR_RETURN(const bool invert, GetBool(component, "invert", false));
  QST_ASSIGN_OR_RETURN(const std::string name, GetString(component, "behavior"));
  Behavior behavior = Behavior::kIsolated;
  if (name == "Removed") {
    behavior = Behavior::kRemoved;
  } else if (name == "MergedWithPrevious") {
    behavior = Behavior::kMergedWithPrevious;
  } else if (name == "MergedWithNext") {
    behavior = Behavior::kMergedWithNext;
  } else if (name == "Contiguous") {
    behavior = Behavior::kContiguous;
  } else if (name != "Isolated") {
    return absl::InvalidArgumentError(absl::StrCat("Split: unknown behavior \"", name, "\""));
  }
  steps_.push_back(Split{std::move(regex), behavior, invert});
  return absl::OkStatus();
}

absl::StatusOr<std::vector<TextRange>> PreTokenizer::SplitRanges(const Split& split, absl::string_view text) {
  QST_ASSIGN_OR_RETURN(const std::vector<TextRange> matches, split.pattern.FindAll(text));
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
  if (end != text.size()) parts.push_back({{end, text.size()}, split.is_inverted});

  std::vector<TextRange> ranges;
  bool previous_is_match = false;
  switch (split.behavior) {
    case Behavior::kRemoved:
      for (const Part& part : parts) {
        if (!part.is_match) ranges.push_back(part.range);
      }
      break;
    case Behavior::kIsolated:
      for (const Part& part : parts) ranges.push_back(part.range);
      break;
    case Behavior::kContiguous:
    case Behavior::kMergedWithPrevious:
      for (const Part& part : parts) {
        const bool joins = split.behavior == Behavior::kContiguous ? part.is_match == previous_is_match
                                                                   : part.is_match && !previous_is_match;
        if (joins && !ranges.empty()) {
          ranges.back().end = part.range.end;
        } else {
          ranges.push_back(part.range);
        }
        previous_is_match = part.is_match;
      }
      break;
    case Behavior::kMergedWithNext:
      for (auto part = parts.rbegin(); part != parts.rend(); ++part) {
        if (part->is_match && !previous_is_match && !ranges.empty()) {
          ranges.back().begin = part->range.begin;
        } else {
          ranges.push_back(part->range);
        }
        previous_is_match = part->is_match;
      }
      std::reverse(ranges.begin(), ranges.end());
      break;
  }
  return ranges;
}

absl::StatusOr<std::vector<PreTokenizer::Word>> PreTokenizer::Apply(Word text) const {
  std::vector<Word> words;
  if (!text.text.empty()) words.push_back(std::move(text));
  for (const Step& step : steps_) {
    if (const Split* split = std::get_if<Split>(&step)) {
      std::vector<Word> parts;
      for (const Word& word : words) {
        QST_ASSIGN_OR_RETURN(const std::vector<TextRange> ranges, SplitRanges(*split, word.text));
        for (const TextRange& range : ranges) {
          if (range.begin == range.end) continue;
          parts.push_back(
              {word.text.substr(range.begin, range.end - range.begin), word.is_at_start && range.begin == 0});
        }
      }
      words = std::move(parts);
      continue;
    }
    for (Word& word : words) {
      if (const Prefix* prefix = std::get_if<Prefix>(&step)) {
        const bool applies = word.is_at_start || !prefix->at_start_only;
        if (applies && !absl::StartsWith(word.text, prefix->text)) word.text.insert(0, prefix->text);
      } else if (const ReplaceSpaces* spaces = std::get_if<ReplaceSpaces>(&step)) {
        word.text = absl::StrReplaceAll(word.text, {{" ", spaces->replacement}});
      } else {
        word.text = ToByteLevel(word.text);
      }
    }
  }
  return words;
}

}  // namespace qst
