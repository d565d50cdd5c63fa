// What must hold of any tokenizer that loads, on any text.
#ifndef QST_TESTS_FUZZ_TOKENIZER_CHECKS_H_
#define QST_TESTS_FUZZ_TOKENIZER_CHECKS_H_

#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "worker/text/tokenizer.h"
#include "worker/text/utf8.h"

namespace qst {

// Ids are in range; decoding gives text, the same one piece by piece; what was decoded encodes again; and the text's
// bytes, taken for ids, decode.
inline void CheckTokenizer(const Tokenizer& tokenizer, absl::string_view text) {
  std::vector<int32_t> bytes;
  for (const unsigned char byte : text.substr(0, 1000)) bytes.push_back(byte);
  std::vector<std::vector<int32_t>> sequences = {std::move(bytes)};
  auto ids = tokenizer.Encode(text, true);
  if (ids.ok()) {
    for (const int32_t id : *ids) {
      if (id < 0 || id >= tokenizer.vocab_size()) std::abort();
    }
    sequences.push_back(*std::move(ids));
  }
  for (const std::vector<int32_t>& sequence : sequences) {
    for (const bool skip_special : {false, true}) {
      const std::string decoded = tokenizer.Decode(sequence, skip_special);
      if (!IsValidUtf8(decoded)) std::abort();
      Tokenizer::TextStream stream(&tokenizer, skip_special);
      std::string joined;
      for (const int32_t id : sequence) {
        const std::string piece = stream.Add(id);
        if (!IsValidUtf8(piece)) std::abort();
        joined += piece;
      }
      if (joined + stream.Finish() != decoded) std::abort();
      if (decoded.size() < 100000) static_cast<void>(tokenizer.Encode(decoded, false));
    }
  }
}

}  // namespace qst

#endif  // QST_TESTS_FUZZ_TOKENIZER_CHECKS_H_
