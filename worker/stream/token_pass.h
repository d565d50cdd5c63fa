// The tokens of one backbone pass: whole sequences one after another, without padding.
#ifndef QST_WORKER_STREAM_TOKEN_PASS_H_
#define QST_WORKER_STREAM_TOKEN_PASS_H_

#include <cstdint>
#include <vector>

namespace qst {

struct TokenPass {
  // Chosen by the submitter: 0, 1, 2, ... without gaps over the life of a stream.
  std::uint64_t id = 0;
  // [T]
  std::vector<std::int32_t> tokens;
  // Sequence s covers tokens [offsets[s], offsets[s + 1]); size is the number of sequences + 1.
  std::vector<std::int32_t> offsets;
  // Training and evaluation: false, every sequence starts at position 0 and nothing is kept. Generation: true;
  // the pass has one sequence, which continues the cached one at position past_tokens (0 starts it anew).
  bool uses_kv_cache = false;
  std::int32_t past_tokens = 0;

  std::int64_t num_tokens() const { return static_cast<std::int64_t>(tokens.size()); }
  std::int64_t num_sequences() const { return static_cast<std::int64_t>(offsets.size()) - 1; }
};

}  // namespace qst

#endif  // QST_WORKER_STREAM_TOKEN_PASS_H_
