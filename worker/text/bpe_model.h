// Byte pair encoding of one word, as the "BPE" model of a tokenizer.json defines it.
#ifndef QST_WORKER_TEXT_BPE_MODEL_H_
#define QST_WORKER_TEXT_BPE_MODEL_H_

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "nlohmann/json.hpp"

namespace qst {

// Immutable but for a cache of short words; all methods are safe to call from several threads.
class BpeModel {
 public:
  // `model` is the member "model" of a tokenizer.json.
  // Errors  kInvalidArgument: malformed, or a merge whose parts or result are no tokens.
  //         kUnimplemented: another kind of model, dropout, subword prefixes or suffixes.
  static absl::StatusOr<std::unique_ptr<BpeModel>> FromJson(const nlohmann::json& model);

  // Appends the tokens of one word (valid UTF-8). Time grows as n log n with the word's length.
  void Tokenize(absl::string_view word, std::vector<int32_t>* ids) const;

  std::optional<int32_t> TokenToId(absl::string_view token) const;
  // Null for ids that name no token.
  const std::string* IdToToken(int32_t id) const;
  // One more than the largest id.
  int32_t vocab_size() const { return static_cast<int32_t>(tokens_.size()); }
  std::optional<int32_t> unk_id() const { return unk_id_; }

 private:
  struct Merge {
    int32_t rank = 0;
    int32_t result = 0;
  };
  struct Symbol {
    int32_t id = 0;
    int32_t previous = -1;
    int32_t next = -1;
    bool is_alive = true;
  };

  BpeModel() = default;
  absl::Status LoadVocabulary(const nlohmann::json& vocabulary);
  absl::Status LoadMerges(const nlohmann::json& merges);
  void AppendSymbols(absl::string_view word, std::vector<Symbol>* symbols) const;
  void MergeSymbols(std::vector<Symbol>* symbols) const;
  const Merge* FindMerge(int32_t left, int32_t right) const;

  absl::flat_hash_map<std::string, int32_t> ids_;
  std::vector<std::optional<std::string>> tokens_;
  absl::flat_hash_map<uint64_t, Merge> merges_;
  std::array<std::optional<int32_t>, 256> byte_ids_;  // of "<0x00>" ... "<0xFF>"
  std::optional<int32_t> unk_id_;
  bool byte_fallback_ = false;
  bool fuse_unk_ = false;
  bool ignore_merges_ = false;

  mutable absl::Mutex cache_mutex_;
  mutable absl::flat_hash_map<std::string, std::vector<int32_t>> cache_ ABSL_GUARDED_BY(cache_mutex_);
};

}  // namespace qst

#endif  // QST_WORKER_TEXT_BPE_MODEL_H_
