// Tokens that are found in text as they stand, before anything else happens to it: the member
// "added_tokens" of a tokenizer.json.
#ifndef QST_WORKER_TEXT_ADDED_TOKENS_H_
#define QST_WORKER_TEXT_ADDED_TOKENS_H_

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "nlohmann/json.hpp"
#include "worker/text/bpe_model.h"
#include "worker/text/normalizer.h"

namespace qst {

struct AddedToken {
  std::string content;
  int32_t id = 0;
  bool is_special = false;      // left out of decoded text
  bool is_single_word = false;  // not within a word
  bool strips_left = false;     // takes the white space before it
  bool strips_right = false;
  bool is_normalized = false;  // found in the normalized text, not in the original
};

class AddedTokens {
 public:
  // A piece of text between tokens, or one token.
  struct Piece {
    std::string text;
    std::optional<int32_t> id;
    bool is_at_start = false;
  };

  // An entry's "normalized_content" is an addition of this project's (tokenizer_files.h): what to look for in
  // normalized text, where that is not the token's own normalized text.
  static absl::StatusOr<AddedTokens> FromJson(const nlohmann::json* list, const BpeModel& model,
                                              const Normalizer& normalizer);

  // Takes the tokens out of valid UTF-8 text; the rest comes back normalized.
  absl::StatusOr<std::vector<Piece>> Split(absl::string_view text, const Normalizer& normalizer) const;

  const AddedToken* FindById(int32_t id) const;
  const AddedToken* FindByContent(absl::string_view content) const;
  // One more than the largest id, 0 if there is none.
  int32_t end_id() const { return end_id_; }

 private:
  // Finds the leftmost, then longest of a set of strings.
  class Trie {
   public:
    void Insert(absl::string_view key, int value);
    // The longest key that is a prefix of `text`: its value and length.
    std::optional<std::pair<int, size_t>> LongestPrefix(absl::string_view text) const;
    // The first place from `offset` on where a key may begin, or the text's end.
    size_t NextCandidate(absl::string_view text, size_t offset) const;

   private:
    std::array<bool, 256> begins_key_ = {};
    absl::flat_hash_map<uint64_t, int32_t> children_;  // (node, byte) -> node
    std::vector<int> values_ = {-1};                   // by node
  };

  void SplitWith(const Trie& trie, absl::string_view text, bool is_at_start, std::vector<Piece>* pieces) const;

  std::vector<AddedToken> tokens_;
  absl::flat_hash_map<int32_t, int> by_id_;
  absl::flat_hash_map<std::string, int> by_content_;
  Trie original_;
  Trie normalized_;
  int32_t end_id_ = 0;
};

}  // namespace qst

#endif  // QST_WORKER_TEXT_ADDED_TOKENS_H_
