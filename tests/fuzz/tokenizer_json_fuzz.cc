// A tokenizer.json from anywhere, and text to encode with it: bytes up to the first zero byte are the
// file, what follows is the text.
#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"
#include "tests/fuzz/tokenizer_checks.h"
#include "worker/text/tokenizer.h"

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
  qst::CheckTokenizer(**tokenizer, text);
  return 0;
}
