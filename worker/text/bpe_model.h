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
#include "worker/text/word_cache.h"

namespace qst {

// Immutable but for a store of workspaces; all methods are safe to call from several threads.
class BpeModel {
 public:
  // `model` is the member "model" of a tokenizer.json. With `spells_bytes`, words are looked up as ToByteLevel
  // (byte_level.h) spells them; they are given as they are.
  // Its "merge_ranks" is an addition of this project's (tokenizer_files.h): the rank of each merge, where several
  // are equal, so that the leftmost of them goes first.
  // Errors  kInvalidArgument: malformed, or a merge whose parts or result are no tokens.
  //         kUnimplemented: another kind of model, dropout, subword prefixes or suffixes.
  static absl::StatusOr<std::unique_ptr<BpeModel>> FromJson(const nlohmann::json& model, bool spells_bytes);

  ~BpeModel();

  std::optional<int32_t> TokenToId(absl::string_view token) const;
  // Null for ids that name no token.
  const std::string* IdToToken(int32_t id) const;
  // One more than the largest id.
  int32_t vocab_size() const { return static_cast<int32_t>(tokens_.size()); }
  std::optional<int32_t> unk_id() const { return unk_id_; }

 private:
  struct Workspace;

 public:
  // Encodes words one after the other, for one thread. The model must outlive it.
  class Encoder {
   public:
    explicit Encoder(const BpeModel* model);
    ~Encoder();
    Encoder(const Encoder&) = delete;
    Encoder& operator=(const Encoder&) = delete;

    // Appends the tokens of one word (valid UTF-8). Time grows as n log n with the word's length.
    void Append(absl::string_view word, std::vector<int32_t>* ids);

   private:
    void AppendPart(absl::string_view word, std::vector<int32_t>* ids);

    const BpeModel* const model_;
    std::unique_ptr<Workspace> workspace_;
  };

 private:
  struct Merge {
    int32_t rank = 0;
    int32_t result = 0;
  };

  BpeModel();
  absl::Status LoadVocabulary(const nlohmann::json& vocabulary);
  absl::Status LoadMerges(const nlohmann::json& merges, const nlohmann::json* ranks);
  void LoadCharacters();
  // The ids that a word consists of before anything is merged.
  void AppendCharacters(absl::string_view word, std::vector<int32_t>* ids) const;
  std::optional<int32_t> CharacterToId(absl::string_view character) const;
  void MergeShort(Workspace* workspace) const;
  void MergeLong(Workspace* workspace) const;
  const Merge* FindMerge(int32_t left, int32_t right) const;
  static uint64_t PairKey(int32_t left, int32_t right) {
    return (static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32) | static_cast<uint32_t>(right);
  }

  absl::flat_hash_map<std::string, int32_t> ids_;
  std::vector<std::optional<std::string>> tokens_;
  absl::flat_hash_map<uint64_t, Merge> merges_;
  std::array<int32_t, 128> ascii_ids_;                // -1: no token
  std::array<std::optional<int32_t>, 256> byte_ids_;  // of "<0x00>" ... "<0xFF>"
  std::array<int32_t, 256> spelled_ids_;              // of what ToByteLevel makes of a byte; -1: no token
  std::optional<int32_t> unk_id_;
  bool byte_fallback_ = false;
  bool fuse_unk_ = false;
  bool ignore_merges_ = false;
  bool spells_bytes_ = false;
  bool has_all_spelled_ = false;
  static constexpr absl::string_view kSpaceSign = "\xE2\x96\x81";  // U+2581
  // No token has U+2581, the sign for a space, behind another character: nothing merges across such a place, and
  // a text may be cut there.
  bool cuts_at_space_sign_ = false;

  mutable absl::Mutex mutex_;
  mutable std::vector<std::unique_ptr<Workspace>> workspaces_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace qst

#endif  // QST_WORKER_TEXT_BPE_MODEL_H_
