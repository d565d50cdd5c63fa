// The tokenizer files of llama2.c.
#include <cstring>
#include <filesystem>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "proto/support/status_macros.h"
#include "worker/checkpoint/llama2c_file.h"

namespace qst {
namespace {

using TokenType = TokenizerDefinition::TokenType;

constexpr std::uint64_t kMaxTokenizerBytes = 64 << 20;
constexpr std::uint32_t kMaxTokenBytes = 1024;
constexpr char kSpaceSubstitute[] = "\xE2\x96\x81";  // U+2581
constexpr const char* kSpecialTokens[] = {"<unk>", "<s>", "</s>"};

std::uint32_t LoadUint32(absl::string_view bytes) {
  std::uint32_t value = 0;
  for (int i = 3; i >= 0; --i) value = value << 8 | static_cast<unsigned char>(bytes[static_cast<std::size_t>(i)]);
  return value;
}

// "<0x0A>".
bool IsByteToken(absl::string_view text) {
  return text.size() == 6 && text.substr(0, 3) == "<0x" && absl::ascii_isxdigit(static_cast<unsigned char>(text[3])) &&
         absl::ascii_isxdigit(static_cast<unsigned char>(text[4])) && text[5] == '>';
}

}  // namespace

absl::StatusOr<TokenizerDefinition> ParseLlama2cTokenizer(absl::string_view contents, std::int64_t vocab_size,
                                                          absl::string_view where) {
  const auto cut_short = [&](std::size_t token) {
    return absl::DataLossError(absl::StrCat(where, ": cut short in token ", token, " of ", vocab_size));
  };
  TokenizerDefinition definition;
  definition.kind = TokenizerDefinition::Kind::kSentencePieceBpe;
  if (contents.size() < 4) return cut_short(0);
  contents.remove_prefix(4);
  for (std::size_t id = 0; id < static_cast<std::size_t>(vocab_size); ++id) {
    if (contents.size() < 8) return cut_short(id);
    const std::uint32_t score_bits = LoadUint32(contents);
    const std::uint32_t num_bytes = LoadUint32(contents.substr(4));
    contents.remove_prefix(8);
    if (num_bytes > kMaxTokenBytes) {
      return absl::InvalidArgumentError(absl::StrCat(where, ": token ", id, " would have ", num_bytes,
                                                     " bytes, at most ", kMaxTokenBytes,
                                                     " are allowed: not the "
                                                     "tokenizer of this model?"));
    }
    if (contents.size() < num_bytes) return cut_short(id);
    const absl::string_view text = contents.substr(0, num_bytes);
    contents.remove_prefix(num_bytes);
    float score;
    std::memcpy(&score, &score_bits, sizeof(score));
    definition.scores.push_back(score);
    if (id < 3) {  // written with line breaks around them
      definition.tokens.push_back(kSpecialTokens[id]);
      definition.token_types.push_back(id == 0 ? TokenType::kUnknown : TokenType::kControl);
    } else {
      definition.tokens.push_back(absl::StrReplaceAll(text, {{" ", kSpaceSubstitute}}));
      definition.token_types.push_back(IsByteToken(text) ? TokenType::kByte : TokenType::kNormal);
    }
  }
  if (!contents.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(where, ": ", contents.size(), " bytes after token ", vocab_size - 1,
                                                   ", the last of the model: the tokenizer of another model?"));
  }
  if (vocab_size < 3) return absl::InvalidArgumentError(absl::StrCat(where, ": needs at least <unk>, <s> and </s>"));
  definition.unk_id = 0;
  definition.bos_id = 1;
  definition.eos_id = 2;
  definition.add_bos = true;
  return definition;
}

absl::StatusOr<TokenizerDefinition> ReadLlama2cTokenizer(const std::string& checkpoint_path, std::int64_t vocab_size) {
  const std::filesystem::path folder = std::filesystem::path(checkpoint_path).parent_path();
  // The more telling name first.
  const std::string names[] = {absl::StrCat("tok", vocab_size, ".bin"), "tokenizer.bin"};
  for (const std::string& name : names) {
    const std::string path = (folder / name).string();
    const absl::StatusOr<std::string> contents = ReadSmallFile(path, kMaxTokenizerBytes);
    if (absl::IsNotFound(contents.status())) continue;
    QST_RETURN_IF_ERROR(contents.status());
    return ParseLlama2cTokenizer(*contents, vocab_size, path);
  }
  return absl::NotFoundError(absl::StrCat(checkpoint_path, ": no tokenizer beside it: put llama2.c's ", names[0],
                                          " or ", names[1], " into the same folder"));
}

}  // namespace qst
