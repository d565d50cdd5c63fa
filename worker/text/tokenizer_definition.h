// A tokenizer as plain data, in the terms of the file formats that hold one, so that a reader of such
// a file can hand it over without knowing how text becomes tokens. tokenizer_files.h turns it into the
// Hugging Face files that the model store keeps.
#ifndef QST_WORKER_TEXT_TOKENIZER_DEFINITION_H_
#define QST_WORKER_TEXT_TOKENIZER_DEFINITION_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace qst {

struct TokenizerDefinition {
  enum class Kind {
    // GPT-2's: text bytes are written as printable characters, pairs merge in the order of `merges`.
    // GGUF: tokenizer.ggml.model = "gpt2".
    kByteLevelBpe,
    // SentencePiece BPE: spaces become U+2581, unknown characters fall back to byte tokens "<0x0A>",
    // and pairs merge by the score of their result. GGUF: tokenizer.ggml.model = "llama".
    kSentencePieceBpe,
  };

  // What a token stands for; the numbers are those of GGUF and of SentencePiece.
  enum class TokenType : int32_t {
    kNormal = 1,
    kUnknown = 2,
    kControl = 3,      // matched before anything else and left out of decoded text: <s>, <|im_end|>
    kUserDefined = 4,  // matched before anything else, part of decoded text
    kUnused = 5,
    kByte = 6,
  };

  Kind kind = Kind::kByteLevelBpe;

  // Token texts by id, UTF-8, all different.
  std::vector<std::string> tokens;
  // One per token, or empty: all are kNormal. GGUF: tokenizer.ggml.token_type.
  std::vector<TokenType> token_types;
  // One per token; needed for kSentencePieceBpe only. Higher merges first. GGUF: tokenizer.ggml.scores.
  std::vector<float> scores;
  // "left right", most important first; needed for kByteLevelBpe only. GGUF: tokenizer.ggml.merges.
  std::vector<std::string> merges;
  // How kByteLevelBpe splits text into words, by GGUF's name for it (tokenizer.ggml.pre): "gpt-2",
  // "smollm", "llama-bpe", "qwen2", ... Unknown names, and none, are refused: a wrong split is silently worse.
  std::string pre_tokenizer;

  std::optional<int32_t> bos_id;
  std::optional<int32_t> eos_id;
  std::optional<int32_t> unk_id;
  std::optional<int32_t> pad_id;
  // Whether encoding with special tokens puts BOS first, EOS last. GGUF: tokenizer.ggml.add_bos_token
  // and add_eos_token; where the file says nothing, BOS is the rule for kSentencePieceBpe only.
  bool add_bos = false;
  bool add_eos = false;
  // kSentencePieceBpe: text gets one leading space. GGUF: tokenizer.ggml.add_space_prefix.
  bool add_space_prefix = true;
  // kSentencePieceBpe: text behind a special token gets none ("legacy": false in tokenizer_config.json).
  bool prefixes_start_only = false;
  // kSentencePieceBpe: spaces at both ends go, and several become one. SentencePiece: remove_extra_whitespaces.
  bool removes_extra_spaces = false;
  // kSentencePieceBpe: user-defined tokens with lower ids are looked for in text that has its leading space and U+2581
  // for spaces, as SentencePiece does it. Others in the original text; what follows one gets a leading space again.
  int32_t late_user_defined_end = 0;

  // Jinja text, empty if there is none. GGUF: tokenizer.chat_template.
  std::string chat_template;
};

}  // namespace qst

#endif  // QST_WORKER_TEXT_TOKENIZER_DEFINITION_H_
