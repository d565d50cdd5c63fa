#include "worker/text/bpe_model.h"

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"
#include "proto/support/status_macros.h"
#include "worker/text/byte_level.h"
#include "worker/text/json_util.h"

namespace qst {
namespace {

using nlohmann::json;

// Ids may have holes, but not so many that a short file makes a large table.
constexpr int64_t kMaxHoles = 1 << 16;

}  // namespace

absl::StatusOr<std::unique_ptr<BpeModel>> BpeModel::FromJson(const json& model, bool spells_bytes) {
  if (!model.is_object()) return absl::InvalidArgumentError("not an object");
  // Old files have no type where they have merges.
  QST_ASSIGN_OR_RETURN(const std::string type,
                       GetString(model, "type", FindMember(model, "merges") != nullptr ? "BPE" : ""));
  if (type != "BPE") {
    return absl::UnimplementedError(absl::StrCat("type \"", type, "\" is not supported, only BPE is"));
  }
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    QST_ASSIGN_OR_RETURN(const std::string value, GetString(model, key, ""));
    if (!value.empty()) return absl::UnimplementedError(absl::StrCat(key, " is not supported"));
  }
  const json* dropout = FindMember(model, "dropout");
  if (dropout != nullptr && !(dropout->is_number() && dropout->get<double>() == 0)) {
    return absl::UnimplementedError("dropout is not supported");
  }
  std::unique_ptr<BpeModel> result(new BpeModel());
  QST_ASSIGN_OR_RETURN(result->byte_fallback_, GetBool(model, "byte_fallback", false));
  QST_ASSIGN_OR_RETURN(result->fuse_unk_, GetBool(model, "fuse_unk", false));
  QST_ASSIGN_OR_RETURN(result->ignore_merges_, GetBool(model, "ignore_merges", false));
  const json* vocabulary = FindMember(model, "vocab");
  if (vocabulary == nullptr || !vocabulary->is_object()) return absl::InvalidArgumentError("no object \"vocab\"");
  QST_RETURN_IF_ERROR(Annotate(result->LoadVocabulary(*vocabulary), "vocab"));
  const json* merges = FindMember(model, "merges");
  if (merges == nullptr || !merges->is_array()) return absl::InvalidArgumentError("no array \"merges\"");
  QST_RETURN_IF_ERROR(Annotate(result->LoadMerges(*merges, FindMember(model, "merge_ranks")), "merges"));
  QST_ASSIGN_OR_RETURN(const std::string unk_token, GetString(model, "unk_token", ""));
  if (!unk_token.empty()) {
    result->unk_id_ = result->TokenToId(unk_token);
    if (!result->unk_id_.has_value()) {
      return absl::InvalidArgumentError(absl::StrCat("unk_token \"", unk_token, "\" is not in vocab"));
    }
  }
  result->spells_bytes_ = spells_bytes;
  result->LoadCharacters();
  return result;
}

void BpeModel::LoadCharacters() {
  has_all_spelled_ = true;
  for (int byte = 0; byte < 256; ++byte) {
    byte_ids_[byte] = TokenToId(absl::StrFormat("<0x%02X>", byte));
    const char text = static_cast<char>(byte);
    spelled_ids_[byte] = TokenToId(ToByteLevel(absl::string_view(&text, 1))).value_or(-1);
    has_all_spelled_ = has_all_spelled_ && spelled_ids_[byte] >= 0;
    if (byte < 128) ascii_ids_[byte] = TokenToId(absl::string_view(&text, 1)).value_or(-1);
  }
  cuts_at_space_sign_ = !spells_bytes_ && !ignore_merges_ && TokenToId(kSpaceSign).has_value();
  for (const std::optional<std::string>& token : tokens_) {
    if (!token.has_value()) continue;
    absl::string_view rest = *token;
    while (absl::ConsumePrefix(&rest, kSpaceSign)) {
    }
    if (absl::StrContains(rest, kSpaceSign)) cuts_at_space_sign_ = false;
  }
}

absl::Status BpeModel::LoadVocabulary(const json& vocabulary) {
  const int64_t limit = static_cast<int64_t>(vocabulary.size()) + kMaxHoles;
  ids_.reserve(vocabulary.size());
  for (const auto& [token, id] : vocabulary.items()) {
    if (!id.is_number_integer() || id < 0 || id >= limit) {
      return absl::InvalidArgumentError(
          absl::StrCat("the id of \"", token, "\" is not an integer from 0 to ", limit - 1));
    }
    const int32_t value = id.get<int32_t>();
    if (value >= static_cast<int32_t>(tokens_.size())) tokens_.resize(value + 1);
    if (tokens_[value].has_value()) {
      return absl::InvalidArgumentError(
          absl::StrCat("\"", *tokens_[value], "\" and \"", token, "\" have the same id ", value));
    }
    tokens_[value] = token;
    ids_.emplace(token, value);
  }
  return absl::OkStatus();
}

absl::Status BpeModel::LoadMerges(const json& merges, const json* ranks) {
  if (ranks != nullptr && (!ranks->is_array() || ranks->size() != merges.size())) {
    return absl::InvalidArgumentError("\"merge_ranks\" is not an array with one rank for each");
  }
  merges_.reserve(merges.size());
  int32_t rank = 0;
  for (const json& merge : merges) {
    std::string left, right;
    if (merge.is_string()) {
      const std::string& line = merge.get_ref<const std::string&>();
      const size_t space = line.find(' ');
      if (space == std::string::npos || line.find(' ', space + 1) != std::string::npos) {
        return absl::InvalidArgumentError(absl::StrCat("entry ", rank, " is not two parts with a space between"));
      }
      left = line.substr(0, space);
      right = line.substr(space + 1);
    } else if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
      left = merge[0].get<std::string>();
      right = merge[1].get<std::string>();
    } else {
      return absl::InvalidArgumentError(absl::StrCat("entry ", rank, " is not a pair of strings"));
    }
    std::string both = left + right;
    const std::optional<int32_t> left_id = TokenToId(left), right_id = TokenToId(right), result = TokenToId(both);
    for (const auto& [id, text] : {std::pair(left_id, &left), std::pair(right_id, &right), std::pair(result, &both)}) {
      if (!id.has_value()) {
        return absl::InvalidArgumentError(absl::StrCat("entry ", rank, ": \"", *text, "\" is not in vocab"));
      }
    }
    int32_t given_rank = rank;
    if (ranks != nullptr) {
      const json& value = (*ranks)[rank];
      if (!value.is_number_integer() || value < 0 || value > rank) {
        return absl::InvalidArgumentError(absl::StrCat("\"merge_ranks\" entry ", rank, " is not from 0 to ", rank));
      }
      given_rank = value.get<int32_t>();
    }
    merges_.insert_or_assign(PairKey(*left_id, *right_id), Merge{given_rank, *result});
    ++rank;
  }
  return absl::OkStatus();
}

std::optional<int32_t> BpeModel::TokenToId(absl::string_view token) const {
  const auto it = ids_.find(token);
  if (it == ids_.end()) return std::nullopt;
  return it->second;
}

const std::string* BpeModel::IdToToken(int32_t id) const {
  if (id < 0 || id >= vocab_size() || !tokens_[id].has_value()) return nullptr;
  return &*tokens_[id];
}

}  // namespace qst
