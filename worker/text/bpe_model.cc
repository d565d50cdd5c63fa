#include "worker/text/bpe_model.h"

#include <algorithm>
#include <queue>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "proto/support/status_macros.h"
#include "worker/text/json_util.h"
#include "worker/text/utf8.h"

namespace qst {
namespace {

using nlohmann::json;

// Words of natural text repeat; longer ones rarely do.
constexpr size_t kMaxCachedWordBytes = 64;
constexpr size_t kMaxCachedWords = 1 << 16;
// Ids may have holes, but not so many that a short file makes a large table.
constexpr int64_t kMaxHoles = 1 << 16;

uint64_t PairKey(int32_t left, int32_t right) {
  return (static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32) | static_cast<uint32_t>(right);
}

}  // namespace

absl::StatusOr<std::unique_ptr<BpeModel>> BpeModel::FromJson(const json& model) {
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
  QST_RETURN_IF_ERROR(Annotate(result->LoadMerges(*merges), "merges"));
  QST_ASSIGN_OR_RETURN(const std::string unk_token, GetString(model, "unk_token", ""));
  if (!unk_token.empty()) {
    result->unk_id_ = result->TokenToId(unk_token);
    if (!result->unk_id_.has_value()) {
      return absl::InvalidArgumentError(absl::StrCat("unk_token \"", unk_token, "\" is not in vocab"));
    }
  }
  for (int byte = 0; byte < 256; ++byte) {
    result->byte_ids_[byte] = result->TokenToId(absl::StrFormat("<0x%02X>", byte));
  }
  return result;
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

absl::Status BpeModel::LoadMerges(const json& merges) {
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
    merges_.insert_or_assign(PairKey(*left_id, *right_id), Merge{rank, *result});
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

const BpeModel::Merge* BpeModel::FindMerge(int32_t left, int32_t right) const {
  const auto it = merges_.find(PairKey(left, right));
  return it == merges_.end() ? nullptr : &it->second;
}

void BpeModel::Tokenize(absl::string_view word, std::vector<int32_t>* ids) const {
  if (word.empty()) return;
  if (ignore_merges_) {
    if (const std::optional<int32_t> id = TokenToId(word)) {
      ids->push_back(*id);
      return;
    }
  }
  const bool is_cacheable = word.size() <= kMaxCachedWordBytes;
  if (is_cacheable) {
    absl::MutexLock lock(&cache_mutex_);
    const auto it = cache_.find(word);
    if (it != cache_.end()) {
      ids->insert(ids->end(), it->second.begin(), it->second.end());
      return;
    }
  }
  std::vector<Symbol> symbols;
  symbols.reserve(word.size());
  AppendSymbols(word, &symbols);
  MergeSymbols(&symbols);
  const size_t first = ids->size();
  for (const Symbol& symbol : symbols) {
    if (symbol.is_alive) ids->push_back(symbol.id);
  }
  if (is_cacheable) {
    absl::MutexLock lock(&cache_mutex_);
    if (cache_.size() < kMaxCachedWords) {
      cache_.emplace(std::string(word), std::vector<int32_t>(ids->begin() + first, ids->end()));
    }
  }
}

void BpeModel::AppendSymbols(absl::string_view word, std::vector<Symbol>* symbols) const {
  auto append = [&](int32_t id) {
    Symbol symbol;
    symbol.id = id;
    symbol.previous = static_cast<int32_t>(symbols->size()) - 1;
    if (!symbols->empty()) symbols->back().next = static_cast<int32_t>(symbols->size());
    symbols->push_back(symbol);
  };
  // An unknown character is held back until a known one follows, so that a run of them can be one token.
  bool has_unknown = false;
  for (size_t i = 0; i < word.size();) {
    const size_t num_bytes = Utf8CharAt(word, i).num_bytes;
    const absl::string_view character = word.substr(i, num_bytes);
    i += num_bytes;
    if (const std::optional<int32_t> id = TokenToId(character)) {
      if (has_unknown) append(*unk_id_);
      has_unknown = false;
      append(*id);
      continue;
    }
    if (byte_fallback_) {
      bool has_all = true;
      for (const unsigned char byte : character) has_all = has_all && byte_ids_[byte].has_value();
      if (has_all) {
        // Does not end a run of unknown characters: the library's order, kept to the letter.
        for (const unsigned char byte : character) append(*byte_ids_[byte]);
        continue;
      }
    }
    if (!unk_id_.has_value()) continue;  // the library drops such characters, too
    if (has_unknown && !fuse_unk_) append(*unk_id_);
    has_unknown = true;
  }
  if (has_unknown) append(*unk_id_);
}

void BpeModel::MergeSymbols(std::vector<Symbol>* symbols_ptr) const {
  std::vector<Symbol>& symbols = *symbols_ptr;
  struct Candidate {
    int32_t rank;
    int32_t position;
    int32_t result;
  };
  // Lowest rank first, then leftmost.
  auto is_later = [](const Candidate& a, const Candidate& b) {
    return a.rank != b.rank ? a.rank > b.rank : a.position > b.position;
  };
  std::vector<Candidate> storage;
  storage.reserve(symbols.size());
  for (size_t i = 0; i + 1 < symbols.size(); ++i) {
    if (const Merge* merge = FindMerge(symbols[i].id, symbols[i + 1].id)) {
      storage.push_back({merge->rank, static_cast<int32_t>(i), merge->result});
    }
  }
  std::priority_queue<Candidate, std::vector<Candidate>, decltype(is_later)> queue(is_later, std::move(storage));
  while (!queue.empty()) {
    const Candidate top = queue.top();
    queue.pop();
    Symbol& left = symbols[top.position];
    if (!left.is_alive || left.next < 0) continue;
    Symbol& right = symbols[left.next];
    const Merge* merge = FindMerge(left.id, right.id);
    if (merge == nullptr || merge->result != top.result) continue;  // a neighbour has changed meanwhile
    left.id = top.result;
    left.next = right.next;
    right.is_alive = false;
    if (left.next >= 0) {
      symbols[left.next].previous = top.position;
      if (const Merge* after = FindMerge(left.id, symbols[left.next].id)) {
        queue.push({after->rank, top.position, after->result});
      }
    }
    if (left.previous >= 0) {
      if (const Merge* before = FindMerge(symbols[left.previous].id, left.id)) {
        queue.push({before->rank, left.previous, before->result});
      }
    }
  }
}

}  // namespace qst
