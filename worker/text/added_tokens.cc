#include "worker/text/added_tokens.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/support/status_macros.h"
#include "worker/text/json_util.h"
#include "worker/text/utf8.h"

namespace qst {
namespace {

using nlohmann::json;

// Above any real vocabulary; keeps tables that are indexed by id small.
constexpr int64_t kMaxAddedTokenId = 1 << 24;

bool ContainsWordCharacter(absl::string_view character) {
  static const Regex* const pattern =
      new Regex(Regex::Compile(R"([\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}])").value());
  const absl::StatusOr<std::vector<TextRange>> matches = pattern->FindAll(character);
  return matches.ok() && !matches->empty();
}

bool StartsWithWord(absl::string_view text) {
  return !text.empty() && ContainsWordCharacter(text.substr(0, Utf8CharAt(text, 0).num_bytes));
}

bool EndsWithWord(absl::string_view text) {
  if (text.empty()) return false;
  size_t start = text.size() - 1;
  while (start > 0 && (text[start] & 0xC0) == 0x80) --start;
  return ContainsWordCharacter(text.substr(start));
}

absl::StatusOr<AddedToken> ParseToken(const json& entry, const BpeModel& model) {
  AddedToken token;
  QST_ASSIGN_OR_RETURN(token.content, GetString(entry, "content"));
  QST_ASSIGN_OR_RETURN(const int64_t id, GetInt(entry, "id"));
  if (id < 0 || id > kMaxAddedTokenId) {
    return absl::InvalidArgumentError(absl::StrCat("id ", id, " is not from 0 to ", kMaxAddedTokenId));
  }
  token.id = static_cast<int32_t>(id);
  // The model's own id counts where the two disagree, as in the library.
  if (const std::optional<int32_t> model_id = model.TokenToId(token.content)) token.id = *model_id;
  QST_ASSIGN_OR_RETURN(token.is_special, GetBool(entry, "special", false));
  QST_ASSIGN_OR_RETURN(token.is_single_word, GetBool(entry, "single_word", false));
  QST_ASSIGN_OR_RETURN(token.strips_left, GetBool(entry, "lstrip", false));
  QST_ASSIGN_OR_RETURN(token.strips_right, GetBool(entry, "rstrip", false));
  QST_ASSIGN_OR_RETURN(token.is_normalized, GetBool(entry, "normalized", !token.is_special));
  return token;
}

}  // namespace

void AddedTokens::Trie::Insert(absl::string_view key, int value) {
  int32_t node = 0;
  if (!key.empty()) begins_key_[static_cast<unsigned char>(key[0])] = true;
  for (const unsigned char byte : key) {
    const auto [it, is_new] =
        children_.try_emplace(static_cast<uint64_t>(node) << 8 | byte, static_cast<int32_t>(values_.size()));
    if (is_new) values_.push_back(-1);
    node = it->second;
  }
  values_[node] = value;
}

std::optional<std::pair<int, size_t>> AddedTokens::Trie::LongestPrefix(absl::string_view text) const {
  std::optional<std::pair<int, size_t>> best;
  int32_t node = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    const auto it = children_.find(static_cast<uint64_t>(node) << 8 | static_cast<unsigned char>(text[i]));
    if (it == children_.end()) break;
    node = it->second;
    if (values_[node] >= 0) best = {values_[node], i + 1};
  }
  return best;
}

size_t AddedTokens::Trie::NextCandidate(absl::string_view text, size_t offset) const {
  while (offset < text.size() && !begins_key_[static_cast<unsigned char>(text[offset])]) ++offset;
  return offset;
}

absl::StatusOr<AddedTokens> AddedTokens::FromJson(const json* list, const BpeModel& model,
                                                  const Normalizer& normalizer) {
  AddedTokens result;
  if (list == nullptr) return result;
  if (!list->is_array()) return absl::InvalidArgumentError("not an array");
  for (const json& entry : *list) {
    absl::StatusOr<AddedToken> token = ParseToken(entry, model);
    if (!token.ok()) return Annotate(token.status(), absl::StrCat("entry ", result.tokens_.size()));
    if (token->content.empty() || result.by_content_.contains(token->content)) continue;
    if (result.by_id_.contains(token->id)) {
      return absl::InvalidArgumentError(absl::StrCat("id ", token->id, " is given twice"));
    }
    const int index = static_cast<int>(result.tokens_.size());
    if (token->is_normalized) {
      std::string normalized;
      if (FindMember(entry, "normalized_content") != nullptr) {
        QST_ASSIGN_OR_RETURN(normalized, GetString(entry, "normalized_content"));
      } else {
        QST_ASSIGN_OR_RETURN(normalized, normalizer.Apply(token->content));
      }
      if (!normalized.empty()) result.normalized_.Insert(normalized, index);
    } else {
      result.original_.Insert(token->content, index);
    }
    result.by_id_.emplace(token->id, index);
    result.by_content_.emplace(token->content, index);
    result.end_id_ = std::max(result.end_id_, token->id + 1);
    result.tokens_.push_back(*std::move(token));
  }
  return result;
}

void AddedTokens::SplitWith(const Trie& trie, absl::string_view text, bool is_at_start,
                            std::vector<Piece>* pieces) const {
  size_t done = 0;
  auto append_text = [&](size_t end) {
    if (done < end)
      pieces->push_back({std::string(text.substr(done, end - done)), std::nullopt, is_at_start && done == 0});
  };
  for (size_t i = trie.NextCandidate(text, 0); i < text.size(); i = trie.NextCandidate(text, i)) {
    const auto match = trie.LongestPrefix(text.substr(i));
    if (!match.has_value()) {
      ++i;
      continue;
    }
    const AddedToken& token = tokens_[match->first];
    size_t begin = i;
    size_t end = i + match->second;
    i = end;
    if (token.is_single_word && (EndsWithWord(text.substr(0, begin)) || StartsWithWord(text.substr(end)))) continue;
    // White space that an earlier token has taken stays with it.
    if (token.strips_left) begin = TrailingSpaceStart(text.substr(0, begin));
    begin = std::max(begin, done);
    if (token.strips_right) end += LeadingSpaceEnd(text.substr(end));
    append_text(begin);
    pieces->push_back({std::string(), token.id, false});
    done = std::max(done, end);
  }
  append_text(text.size());
}

absl::StatusOr<std::vector<AddedTokens::Piece>> AddedTokens::Split(absl::string_view text,
                                                                   const Normalizer& normalizer) const {
  std::vector<Piece> coarse;
  SplitWith(original_, text, true, &coarse);
  std::vector<Piece> pieces;
  size_t num_bytes = 0;
  for (Piece& piece : coarse) {
    if (piece.id.has_value()) {
      pieces.push_back(std::move(piece));
      continue;
    }
    QST_ASSIGN_OR_RETURN(const std::string normalized, normalizer.Apply(piece.text));
    num_bytes += normalized.size();
    if (num_bytes > MaxRewrittenBytes(text.size())) {
      return absl::ResourceExhaustedError(
          absl::StrCat("the normalizer makes more than ", MaxRewrittenBytes(text.size()), " bytes of the text"));
    }
    SplitWith(normalized_, normalized, piece.is_at_start, &pieces);
  }
  return pieces;
}

const AddedToken* AddedTokens::FindById(int32_t id) const {
  const auto it = by_id_.find(id);
  return it == by_id_.end() ? nullptr : &tokens_[it->second];
}

const AddedToken* AddedTokens::FindByContent(absl::string_view content) const {
  const auto it = by_content_.find(content);
  return it == by_content_.end() ? nullptr : &tokens_[it->second];
}

}  // namespace qst
