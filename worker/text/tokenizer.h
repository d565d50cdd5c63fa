// Text to token ids and back, identical to the Hugging Face library for the files it supports.
#ifndef QST_WORKER_TEXT_TOKENIZER_H_
#define QST_WORKER_TEXT_TOKENIZER_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "worker/text/added_tokens.h"
#include "worker/text/bpe_model.h"
#include "worker/text/decoder.h"
#include "worker/text/normalizer.h"
#include "worker/text/pre_tokenizer.h"
#include "worker/text/tokenizer_definition.h"
#include "worker/text/tokenizer_files.h"

namespace qst {

// Immutable; all methods are safe to call from several threads.
class Tokenizer {
 public:
  // Reads tokenizer.json and, where present, tokenizer_config.json, special_tokens_map.json,
  // generation_config.json and chat_template.jinja; see ReadTokenizerFiles.
  // Errors  kNotFound: no tokenizer. kInvalidArgument: malformed; the message names file and field.
  //         kUnimplemented: a component that is not supported; it is named.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> FromModelFolder(const std::string& folder);
  static absl::StatusOr<std::unique_ptr<Tokenizer>> FromFiles(const TokenizerFiles& files);
  static absl::StatusOr<std::unique_ptr<Tokenizer>> FromDefinition(const TokenizerDefinition& definition);

  // The tokens of a text. Special tokens that the text spells out are recognised. With `add_special`, what
  // the file's post-processor adds (such as BOS) is added. Bytes that are not UTF-8 count as U+FFFD.
  // Errors  kResourceExhausted: a pattern of the file backtracks too much on this text, or its rules make far too
  // much of it.
  absl::StatusOr<std::vector<int32_t>> Encode(absl::string_view text, bool add_special) const;

  // The text of the tokens, always valid UTF-8. Ids that name no token are left out, and with
  // `skip_special`, special tokens are, too.
  std::string Decode(const std::vector<int32_t>& ids, bool skip_special) const;

  // Decodes id by id; the pieces, joined, are exactly what Decode gives of all ids.
  class TextStream {
   public:
    // `tokenizer` must outlive it.
    TextStream(const Tokenizer* tokenizer, bool skip_special);
    // The text that no later id can change: whole characters, often none.
    std::string Add(int32_t id);
    // What is left, with U+FFFD for bytes that never became a character. The stream is used up.
    std::string Finish();

   private:
    const Tokenizer* const tokenizer_;
    const bool skip_special_;
    Decoder::Stream stream_;
  };

  std::optional<int32_t> TokenToId(absl::string_view token) const;
  // The token as the file spells it; nullopt for ids that name none.
  std::optional<std::string> IdToToken(int32_t id) const;

  // One more than the largest id. A model's embedding may have more rows, for alignment.
  int32_t vocab_size() const { return vocab_size_; }
  std::optional<int32_t> bos_id() const { return bos_id_; }
  std::optional<int32_t> eos_id() const { return eos_id_; }
  std::optional<int32_t> unk_id() const { return unk_id_; }
  std::optional<int32_t> pad_id() const { return pad_id_; }
  // Where generation stops: eos_id and the ids of generation_config.json, ascending.
  const std::vector<int32_t>& stop_ids() const { return stop_ids_; }
  // Whether Encode with `add_special` puts bos_id first.
  bool adds_bos() const { return bos_id_.has_value() && !prefix_.empty() && prefix_.front() == *bos_id_; }
  // Whether the tokens of a text begin with a space of the tokenizer's own ("a" becomes U+2581 "a").
  bool adds_prefix_space() const { return adds_prefix_space_; }
  // Jinja text, empty if there is none.
  const std::string& chat_template() const { return chat_template_; }

 private:
  Tokenizer() = default;
  absl::Status LoadTokenizerJson(const std::string& text);
  absl::Status LoadPostProcessor(const nlohmann::json* component, int depth);
  absl::Status LoadTemplate(const nlohmann::json& component);
  absl::Status LoadClassifierTokens(const nlohmann::json& component);
  absl::Status LoadSettings(const TokenizerFiles& files);
  // The token that decoding sees; null if it sees none.
  const std::string* DecodedToken(int32_t id, bool skip_special) const;

  std::unique_ptr<BpeModel> model_;
  Normalizer normalizer_;
  PreTokenizer pre_tokenizer_;
  Decoder decoder_;
  AddedTokens added_tokens_;
  std::vector<int32_t> prefix_;
  std::vector<int32_t> suffix_;
  int32_t vocab_size_ = 0;
  bool adds_prefix_space_ = false;
  std::optional<int32_t> bos_id_, eos_id_, unk_id_, pad_id_;
  std::vector<int32_t> stop_ids_;
  std::string chat_template_;
};

}  // namespace qst

#endif  // QST_WORKER_TEXT_TOKENIZER_H_
