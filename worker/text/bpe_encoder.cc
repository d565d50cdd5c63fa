// BpeModel::Encoder: from words to tokens.
#include <algorithm>
#include <limits>
#include <queue>
#include <utility>

#include "absl/strings/match.h"
#include "worker/text/bpe_model.h"
#include "worker/text/byte_level.h"
#include "worker/text/utf8.h"

namespace qst {
namespace {

// Up to so many symbols, looking through all pairs for the best is quicker than a queue.
constexpr size_t kMaxShort = 48;
constexpr int32_t kNoRank = std::numeric_limits<int32_t>::max();

}  // namespace

// What encoding needs beside the model.
struct BpeModel::Workspace {
  WordCache cache;
  std::vector<int32_t> ids;
  std::vector<Merge> merges;  // of each symbol with the next, where there are few
};

BpeModel::BpeModel() = default;
BpeModel::~BpeModel() = default;

const BpeModel::Merge* BpeModel::FindMerge(int32_t left, int32_t right) const {
  const auto it = merges_.find(PairKey(left, right));
  return it == merges_.end() ? nullptr : &it->second;
}

BpeModel::Encoder::Encoder(const BpeModel* model) : model_(model) {
  {
    absl::MutexLock lock(&model->mutex_);
    if (!model->workspaces_.empty()) {
      workspace_ = std::move(model->workspaces_.back());
      model->workspaces_.pop_back();
    }
  }
  if (workspace_ == nullptr) workspace_ = std::make_unique<Workspace>();
}

BpeModel::Encoder::~Encoder() {
  absl::MutexLock lock(&model_->mutex_);
  model_->workspaces_.push_back(std::move(workspace_));
}

void BpeModel::Encoder::Append(absl::string_view word, std::vector<int32_t>* ids) {
  if (!model_->cuts_at_space_sign_) return AppendPart(word, ids);
  while (!word.empty()) {
    size_t end = 0;
    while (absl::StartsWith(word.substr(end), kSpaceSign)) end += kSpaceSign.size();
    end = std::min(word.find(kSpaceSign, end), word.size());
    AppendPart(word.substr(0, end), ids);
    word.remove_prefix(end);
  }
}

void BpeModel::Encoder::AppendPart(absl::string_view word, std::vector<int32_t>* ids) {
  if (word.empty() || workspace_->cache.Lookup(word, ids)) return;
  std::vector<int32_t>& symbols = workspace_->ids;
  symbols.clear();
  std::string spelled;
  if (model_->spells_bytes_ && (model_->ignore_merges_ || !model_->has_all_spelled_)) spelled = ToByteLevel(word);
  const absl::string_view characters = model_->spells_bytes_ ? absl::string_view(spelled) : word;
  const std::optional<int32_t> whole = model_->ignore_merges_ ? model_->TokenToId(characters) : std::nullopt;
  if (whole.has_value()) {
    symbols.push_back(*whole);
  } else if (model_->spells_bytes_ && model_->has_all_spelled_) {
    for (const unsigned char byte : word) symbols.push_back(model_->spelled_ids_[byte]);
  } else {
    model_->AppendCharacters(characters, &symbols);
  }
  if (whole.has_value()) {
    // Not to be merged further.
  } else if (symbols.size() <= kMaxShort) {
    model_->MergeShort(workspace_.get());
  } else {
    model_->MergeLong(workspace_.get());
  }
  ids->insert(ids->end(), symbols.begin(), symbols.end());
  workspace_->cache.Insert(word, symbols.data(), symbols.size());
}

std::optional<int32_t> BpeModel::CharacterToId(absl::string_view character) const {
  if (character.size() > 1) return TokenToId(character);
  const int32_t id = ascii_ids_[static_cast<unsigned char>(character[0])];
  return id < 0 ? std::nullopt : std::optional<int32_t>(id);
}

void BpeModel::AppendCharacters(absl::string_view word, std::vector<int32_t>* ids) const {
  // An unknown character is held back until a known one follows, so that a run of them can be one token.
  bool has_unknown = false;
  for (size_t i = 0; i < word.size();) {
    const size_t num_bytes = Utf8CharAt(word, i).num_bytes;
    const absl::string_view character = word.substr(i, num_bytes);
    i += num_bytes;
    if (const std::optional<int32_t> id = CharacterToId(character)) {
      if (has_unknown) ids->push_back(*unk_id_);
      has_unknown = false;
      ids->push_back(*id);
      continue;
    }
    if (byte_fallback_) {
      bool has_all = true;
      for (const unsigned char byte : character) has_all = has_all && byte_ids_[byte].has_value();
      if (has_all) {
        // Does not end a run of unknown characters: the library's order, kept to the letter.
        for (const unsigned char byte : character) ids->push_back(*byte_ids_[byte]);
        continue;
      }
    }
    if (!unk_id_.has_value()) continue;  // the library drops such characters, too
    if (has_unknown && !fuse_unk_) ids->push_back(*unk_id_);
    has_unknown = true;
  }
  if (has_unknown) ids->push_back(*unk_id_);
}

void BpeModel::MergeShort(Workspace* workspace) const {
  std::vector<int32_t>& ids = workspace->ids;
  std::vector<Merge>& merges = workspace->merges;
  auto merge_at = [&](size_t i) {
    const Merge* merge = i + 1 < ids.size() ? FindMerge(ids[i], ids[i + 1]) : nullptr;
    return merge == nullptr ? Merge{kNoRank, 0} : *merge;
  };
  merges.clear();
  for (size_t i = 0; i < ids.size(); ++i) merges.push_back(merge_at(i));
  while (!ids.empty()) {
    // The first of the best: the leftmost.
    size_t best = 0;
    for (size_t i = 1; i < merges.size(); ++i) {
      if (merges[i].rank < merges[best].rank) best = i;
    }
    if (merges[best].rank == kNoRank) break;
    ids[best] = merges[best].result;
    ids.erase(ids.begin() + best + 1);
    merges.erase(merges.begin() + best + 1);
    merges[best] = merge_at(best);
    if (best > 0) merges[best - 1] = merge_at(best - 1);
  }
}

void BpeModel::MergeLong(Workspace* workspace) const {
  struct Symbol {
    int32_t id;
    int32_t previous;
    int32_t next;
    bool is_alive;
  };
  std::vector<int32_t>& ids = workspace->ids;
  const int32_t size = static_cast<int32_t>(ids.size());
  std::vector<Symbol> symbols;
  symbols.reserve(ids.size());
  for (int32_t i = 0; i < size; ++i) symbols.push_back({ids[i], i - 1, i + 1 < size ? i + 1 : -1, true});
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
  ids.clear();
  for (const Symbol& symbol : symbols) {
    if (symbol.is_alive) ids.push_back(symbol.id);
  }
}

}  // namespace qst
