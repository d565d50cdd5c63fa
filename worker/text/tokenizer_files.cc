#include "worker/text/tokenizer_files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <optional>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "proto/support/status_macros.h"
#include "worker/text/json_util.h"

namespace qst {
namespace {

using nlohmann::json;
using TokenType = TokenizerDefinition::TokenType;

constexpr int64_t kMaxFileBytes = 256 << 20;
// Names that GPT-2's library gives without any file saying so.
constexpr char kGpt2EndOfText[] = "<|endoftext|>";

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

// The roles of a folder in GPT-2's form, where files that name them are optional.
absl::Status ApplySettings(const TokenizerFiles& files, TokenizerDefinition* definition) {
  absl::flat_hash_map<std::string, int32_t> ids;
  for (size_t id = 0; id < definition->tokens.size(); ++id) ids[definition->tokens[id]] = static_cast<int32_t>(id);
  definition->token_types.assign(definition->tokens.size(), TokenType::kNormal);
  auto set = [&](std::optional<int32_t>* role, const std::string& token) {
    const auto it = ids.find(token);
    if (it == ids.end()) return;
    if (!role->has_value()) *role = it->second;
    definition->token_types[it->second] = TokenType::kControl;
  };
  for (const auto& [name, text] : {std::pair("tokenizer_config.json", &files.tokenizer_config_json),
                                   std::pair("special_tokens_map.json", &files.special_tokens_map_json)}) {
    if (text->empty()) continue;
    absl::StatusOr<json> config = ParseJson(*text);
    if (!config.ok()) return Annotate(config.status(), name);
    for (const auto& [key, role] :
         {std::pair("bos_token", &definition->bos_id), std::pair("eos_token", &definition->eos_id),
          std::pair("unk_token", &definition->unk_id), std::pair("pad_token", &definition->pad_id)}) {
      const json* value = FindMember(*config, key);
      if (value != nullptr && value->is_object()) value = FindMember(*value, "content");
      if (value != nullptr && value->is_string()) set(role, value->get<std::string>());
    }
    absl::StatusOr<bool> add_bos = GetBool(*config, "add_bos_token", definition->add_bos);
    if (!add_bos.ok()) return Annotate(add_bos.status(), name);
    definition->add_bos = *add_bos;
  }
  if (!definition->bos_id.has_value()) set(&definition->bos_id, kGpt2EndOfText);
  if (!definition->eos_id.has_value()) set(&definition->eos_id, kGpt2EndOfText);
  if (!definition->bos_id.has_value()) definition->add_bos = false;
  return absl::OkStatus();
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

  QST_ASSIGN_OR_RETURN(const std::optional<std::string> vocab, ReadIfPresent(folder, "vocab.json"));
  QST_ASSIGN_OR_RETURN(const std::optional<std::string> merges, ReadIfPresent(folder, "merges.txt"));
  if (!vocab.has_value() || !merges.has_value()) {
    return absl::NotFoundError(
        absl::StrCat(folder, ": no tokenizer.json (and no vocab.json with merges.txt); add it to the model folder"));
  }
  absl::StatusOr<TokenizerDefinition> definition = DefinitionFromVocabAndMerges(*vocab, *merges);
  if (!definition.ok()) return Annotate(definition.status(), folder);
  QST_RETURN_IF_ERROR(Annotate(ApplySettings(files, &*definition), folder));
  absl::StatusOr<TokenizerFiles> converted = ToTokenizerFiles(*definition);
  if (!converted.ok()) return Annotate(converted.status(), folder);
  files.tokenizer_json = std::move(converted->tokenizer_json);
  if (files.tokenizer_config_json.empty()) {
    files.tokenizer_config_json = std::move(converted->tokenizer_config_json);
  }
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
  absl::StatusOr<json> vocabulary = ParseJson(vocab_json);
  if (!vocabulary.ok()) return Annotate(vocabulary.status(), "vocab.json");
  if (!vocabulary->is_object()) return absl::InvalidArgumentError("vocab.json: not an object");
  std::vector<std::optional<std::string>> tokens(vocabulary->size());
  for (const auto& [token, id] : vocabulary->items()) {
    if (!id.is_number_integer() || id < 0 || id >= static_cast<int64_t>(tokens.size())) {
      return absl::InvalidArgumentError(
          absl::StrCat("vocab.json: the id of \"", token, "\" is not an integer below ", tokens.size()));
    }
    std::optional<std::string>& slot = tokens[id.get<size_t>()];
    if (slot.has_value()) {
      return absl::InvalidArgumentError(absl::StrCat("vocab.json: \"", *slot, "\" and \"", token, "\" have one id"));
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
