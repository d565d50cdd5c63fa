#include "worker/text/tokenizer_files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <optional>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "proto/support/status_macros.h"
#include "worker/text/json_util.h"
#include "worker/text/sentence_piece_file.h"
#include "worker/text/tokenizer_settings.h"

namespace qst {
namespace {

using nlohmann::json;
constexpr int64_t kMaxFileBytes = 256 << 20;

// Nullopt if there is no such file.
absl::StatusOr<std::optional<std::string>> ReadIfPresent(const std::string& folder, const char* name) {
  const std::string path = absl::StrCat(folder, "/", name);
  struct stat info;
  if (stat(path.c_str(), &info) != 0) {
    if (errno == ENOENT || errno == ENOTDIR) return std::optional<std::string>();
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", std::strerror(errno)));
  }
  if (!S_ISREG(info.st_mode)) return absl::InvalidArgumentError(absl::StrCat(path, ": not a file"));
  if (info.st_size > kMaxFileBytes) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", info.st_size, " bytes, more than ", kMaxFileBytes));
  }
  std::ifstream stream(path, std::ios::binary);
  std::string text(static_cast<size_t>(info.st_size), '\0');
  if (!stream.read(text.data(), static_cast<std::streamsize>(text.size()))) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": cannot be read"));
  }
  return std::optional<std::string>(std::move(text));
}

absl::Status WriteAtomically(const std::string& path, const std::string& text) {
  const std::string temporary = absl::StrCat(path, ".tmp");
  auto failed = [](const std::string& where) {
    return absl::UnavailableError(absl::StrCat(where, ": cannot be written: ", std::strerror(errno)));
  };
  const int file = open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (file < 0) return failed(temporary);
  size_t done = 0;
  while (done < text.size()) {
    const ssize_t count = write(file, text.data() + done, text.size() - done);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) {
      const absl::Status status = failed(temporary);
      close(file);
      unlink(temporary.c_str());
      return status;
    }
    done += static_cast<size_t>(count);
  }
  const bool is_synced = fsync(file) == 0;
  const bool is_closed = close(file) == 0;
  if (!is_synced || !is_closed || rename(temporary.c_str(), path.c_str()) != 0) {
    const absl::Status status = failed(path);
    unlink(temporary.c_str());
    return status;
  }
  return absl::OkStatus();
}

// The two files of GPT-2's form, by the names that are in use.
constexpr std::pair<const char*, const char*> kVocabAndMerges[] = {
    {"vocab.json", "merges.txt"}, {"encoder.json", "vocab.bpe"}, {"gpt2-vocab.json", "gpt2-merges.txt"}};

// The tokenizer of a folder without tokenizer.json.
absl::StatusOr<TokenizerDefinition> ReadDefinition(const std::string& folder) {
  QST_ASSIGN_OR_RETURN(const std::optional<std::string> model, ReadIfPresent(folder, "tokenizer.model"));
  if (model.has_value()) {
    absl::StatusOr<TokenizerDefinition> definition = DefinitionFromSentencePiece(*model);
    if (!definition.ok()) return Annotate(definition.status(), absl::StrCat(folder, "/tokenizer.model"));
    return definition;
  }
  for (const auto& [vocab_name, merges_name] : kVocabAndMerges) {
    QST_ASSIGN_OR_RETURN(const std::optional<std::string> vocab, ReadIfPresent(folder, vocab_name));
    QST_ASSIGN_OR_RETURN(const std::optional<std::string> merges, ReadIfPresent(folder, merges_name));
    if (!vocab.has_value() || !merges.has_value()) continue;
    absl::StatusOr<TokenizerDefinition> definition = DefinitionFromVocabAndMerges(*vocab, *merges);
    if (!definition.ok()) return Annotate(definition.status(), absl::StrCat(folder, "/", vocab_name));
    return definition;
  }
  return absl::NotFoundError(absl::StrCat(
      folder,
      ": no tokenizer.json (and no tokenizer.model, nor vocab.json with merges.txt); add it to the model folder"));
}

}  // namespace

absl::StatusOr<TokenizerFiles> ReadTokenizerFiles(const std::string& folder) {
  TokenizerFiles files;
  bool has_tokenizer_json = false;
  struct Entry {
    const char* name;
    std::string* text;
  };
  for (const Entry& entry :
       {Entry{"tokenizer.json", &files.tokenizer_json}, Entry{"tokenizer_config.json", &files.tokenizer_config_json},
        Entry{"special_tokens_map.json", &files.special_tokens_map_json},
        Entry{"generation_config.json", &files.generation_config_json},
        Entry{"chat_template.jinja", &files.chat_template_jinja}}) {
    QST_ASSIGN_OR_RETURN(std::optional<std::string> text, ReadIfPresent(folder, entry.name));
    if (!text.has_value()) continue;
    *entry.text = *std::move(text);
    has_tokenizer_json = has_tokenizer_json || entry.text == &files.tokenizer_json;
  }
  if (has_tokenizer_json) return files;

  QST_ASSIGN_OR_RETURN(TokenizerDefinition definition, ReadDefinition(folder));
  QST_ASSIGN_OR_RETURN(const std::optional<std::string> added, ReadIfPresent(folder, "added_tokens.json"));
  QST_RETURN_IF_ERROR(Annotate(ApplyTokenizerSettings(files, added.value_or(""), &definition), folder));
  absl::StatusOr<TokenizerFiles> converted = ToTokenizerFiles(definition);
  if (!converted.ok()) return Annotate(converted.status(), folder);
  files.tokenizer_json = std::move(converted->tokenizer_json);
  absl::StatusOr<std::string> config = CompleteTokenizerConfig(files, definition);
  if (!config.ok()) return Annotate(config.status(), folder);
  files.tokenizer_config_json =
      files.tokenizer_config_json.empty() ? std::move(converted->tokenizer_config_json) : *std::move(config);
  return files;
}

absl::Status WriteTokenizerFiles(const TokenizerFiles& files, const std::string& folder) {
  for (const auto& [name, text] : {std::pair("tokenizer.json", &files.tokenizer_json),
                                   std::pair("tokenizer_config.json", &files.tokenizer_config_json),
                                   std::pair("special_tokens_map.json", &files.special_tokens_map_json),
                                   std::pair("generation_config.json", &files.generation_config_json),
                                   std::pair("chat_template.jinja", &files.chat_template_jinja)}) {
    if (!text->empty()) QST_RETURN_IF_ERROR(WriteAtomically(absl::StrCat(folder, "/", name), *text));
  }
  return absl::OkStatus();
}

absl::StatusOr<TokenizerDefinition> DefinitionFromVocabAndMerges(absl::string_view vocab_json,
                                                                 absl::string_view merges_txt) {
  TokenizerDefinition definition;
  definition.kind = TokenizerDefinition::Kind::kByteLevelBpe;
  definition.pre_tokenizer = "gpt-2";
  QST_ASSIGN_OR_RETURN(const json vocabulary, ParseJson(vocab_json));
  if (!vocabulary.is_object()) return absl::InvalidArgumentError("not an object");
  std::vector<std::optional<std::string>> tokens(vocabulary.size());
  for (const auto& [token, id] : vocabulary.items()) {
    if (!id.is_number_integer() || id < 0 || id >= static_cast<int64_t>(tokens.size())) {
      return absl::InvalidArgumentError(
          absl::StrCat("the id of \"", token, "\" is not an integer below ", tokens.size()));
    }
    std::optional<std::string>& slot = tokens[id.get<size_t>()];
    if (slot.has_value()) {
      return absl::InvalidArgumentError(absl::StrCat("\"", *slot, "\" and \"", token, "\" have one id"));
    }
    slot = token;
  }
  for (std::optional<std::string>& token : tokens) definition.tokens.push_back(*std::move(token));
  bool is_first = true;
  for (absl::string_view line : absl::StrSplit(merges_txt, '\n')) {
    if (absl::EndsWith(line, "\r")) line.remove_suffix(1);
    const bool is_version = is_first && absl::StartsWith(line, "#version");
    is_first = false;
    if (!line.empty() && !is_version) definition.merges.emplace_back(line);
  }
  return definition;
}

}  // namespace qst
