// A tokenizer.json from anywhere, and text to encode with it: bytes up to the first zero byte are the
// file, what follows is the text.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "worker/text/tokenizer.h"
#include "worker/text/utf8.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const absl::string_view bytes(reinterpret_cast<const char*>(data), size);
  const size_t end = bytes.find('\0');
  qst::TokenizerFiles files;
  files.tokenizer_json = std::string(bytes.substr(0, end));
  files.tokenizer_config_json = R"({"unk_token": "<unk>", "pad_token": {"content": "<pad>"}})";
  const auto tokenizer = qst::Tokenizer::FromFiles(files);
  if (!tokenizer.ok()) return 0;
  const absl::string_view text =
      end == absl::string_view::npos ? absl::string_view("Hello <s> w\xC3\xB6rld 12\n\xFF") : bytes.substr(end + 1);
  const auto ids = (*tokenizer)->Encode(text, true);
  if (!ids.ok()) return 0;
  for (const int32_t id : *ids) {
    if (id < 0 || id >= (*tokenizer)->vocab_size()) std::abort();
  }
  for (const bool skip_special : {false, true}) {
    if (!qst::IsValidUtf8((*tokenizer)->Decode(*ids, skip_special))) std::abort();
  }
  return 0;
}
