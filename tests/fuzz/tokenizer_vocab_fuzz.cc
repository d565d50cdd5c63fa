// A folder in GPT-2's form: vocab.json, merges.txt, tokenizer_config.json, special_tokens_map.json, added_tokens.json
// and text to encode, a zero byte between any two.
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "tests/fuzz/tokenizer_checks.h"
#include "worker/text/tokenizer.h"
#include "worker/text/tokenizer_files.h"
#include "worker/text/tokenizer_settings.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const absl::string_view bytes(reinterpret_cast<const char*>(data), size);
  std::vector<std::string> parts = absl::StrSplit(bytes, absl::MaxSplits('\0', 5));
  parts.resize(6);
  auto definition = qst::DefinitionFromVocabAndMerges(parts[0], parts[1]);
  if (!definition.ok()) return 0;
  qst::TokenizerFiles files;
  files.tokenizer_config_json = parts[2];
  files.special_tokens_map_json = parts[3];
  if (!qst::ApplyTokenizerSettings(files, parts[4], &*definition).ok()) return 0;
  const auto tokenizer = qst::Tokenizer::FromDefinition(*definition);
  if (tokenizer.ok()) qst::CheckTokenizer(**tokenizer, parts[5]);
  return 0;
}
