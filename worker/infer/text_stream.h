// Text of tokens as they come, in whole UTF-8 characters.
#ifndef QST_WORKER_INFER_TEXT_STREAM_H_
#define QST_WORKER_INFER_TEXT_STREAM_H_

#include <cstdint>
#include <string>
#include <vector>

#include "worker/text/tokenizer.h"

namespace qst {

// The pieces that Add and Finish return, joined, are what the tokens add to the prompt's text. A character that
// several tokens make up comes with the last of them.
class TextStream {
 public:
  // `tokenizer` must outlive the stream. The end of the prompt decides whether a space belongs to the first token.
  TextStream(const Tokenizer* tokenizer, const std::vector<std::int32_t>& prompt);

  std::string Add(std::int32_t token);
  // What is left, with replacement characters for bytes that never became a character.
  std::string Finish();

 private:
  std::string TextOf(std::size_t end) const;

  const Tokenizer* const tokenizer_;
  // Context, whose text was given out (or is the prompt's), then tokens that wait.
  std::vector<std::int32_t> tokens_;
  std::size_t num_context_ = 0;
};

}  // namespace qst

#endif  // QST_WORKER_INFER_TEXT_STREAM_H_
