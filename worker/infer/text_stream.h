// Text of generated tokens as they come, in whole UTF-8 characters.
#ifndef QST_WORKER_INFER_TEXT_STREAM_H_
#define QST_WORKER_INFER_TEXT_STREAM_H_

#include <cstdint>
#include <string>
#include <vector>

#include "worker/text/tokenizer.h"

namespace qst {

// The pieces that Add and Finish return, joined, are what the tokens add to the prompt's text: with it, they are the
// text of all tokens. A character that several tokens make up comes with the last of them, or, where a tokenizer has
// tokens of single bytes, with the token after those.
class TextStream {
 public:
  // `tokenizer` must outlive the stream. The prompt decides whether a space belongs to the first token, and may end
  // inside a character.
  TextStream(const Tokenizer* tokenizer, const std::vector<std::int32_t>& prompt)
      : stream_(tokenizer, /*skip_special=*/true) {
    for (const std::int32_t token : prompt) stream_.Add(token);
  }

  std::string Add(std::int32_t token) { return stream_.Add(token); }
  // What is left, with replacement characters for bytes that never became a character.
  std::string Finish() { return stream_.Finish(); }

 private:
  Tokenizer::TextStream stream_;
};

}  // namespace qst

#endif  // QST_WORKER_INFER_TEXT_STREAM_H_
