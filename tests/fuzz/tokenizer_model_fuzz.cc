// A tokenizer.model from anywhere, and text to encode with it: the first byte is the text's size, the text follows, and
// then the file.
#include <cstddef>
#include <cstdint>

#include "absl/strings/string_view.h"
#include "tests/fuzz/tokenizer_checks.h"
#include "worker/text/sentence_piece_file.h"
#include "worker/text/tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const absl::string_view bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
  const absl::string_view text = bytes.substr(0, data[0]);
  const auto definition = qst::DefinitionFromSentencePiece(bytes.substr(text.size()));
  if (!definition.ok()) return 0;
  const auto tokenizer = qst::Tokenizer::FromDefinition(*definition);
  if (tokenizer.ok()) qst::CheckTokenizer(**tokenizer, text);
  return 0;
}
