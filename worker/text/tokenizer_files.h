// The files of a tokenizer in a Hugging Face model folder, and making them from other forms. The model
// store keeps tokenizer.json and tokenizer_config.json of every model, whatever it was imported from.
//
// Two members of a tokenizer.json made here are this project's own; the Hugging Face library passes over them. They
// say what the format has no words for and what SentencePiece does:
//   model.merge_ranks                  one number a merge, lower first; among equals the leftmost place in the text
//                                      goes first (without it: the order of the list)
//   added_tokens[].normalized_content  what a token with "normalized": true looks like in normalized text
#ifndef QST_WORKER_TEXT_TOKENIZER_FILES_H_
#define QST_WORKER_TEXT_TOKENIZER_FILES_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "worker/text/tokenizer_definition.h"

namespace qst {

// Contents by file name; empty where there is no such file. Only tokenizer_json is indispensable.
struct TokenizerFiles {
  std::string tokenizer_json;
  std::string tokenizer_config_json;
  std::string special_tokens_map_json;
  std::string generation_config_json;
  std::string chat_template_jinja;
};

// Reads a model folder. Without tokenizer.json, the first of these is converted: tokenizer.model (SentencePiece);
// vocab.json with merges.txt (GPT-2's own form, which OPT and Qwen2 have); the latter under the names encoder.json and
// vocab.bpe, or gpt2-vocab.json and gpt2-merges.txt. Converting follows added_tokens.json and, of
// tokenizer_config.json, the tokens and their roles, add_bos_token, add_eos_token, add_prefix_space, legacy and
// tokenizer_class.
// Errors  kNotFound: none of them is there. kInvalidArgument: too large or, if converted, malformed.
//         kUnimplemented: converting cannot do what the files ask for; it is named.
absl::StatusOr<TokenizerFiles> ReadTokenizerFiles(const std::string& folder);

// Writes the files that are not empty; each appears complete or not at all.
absl::Status WriteTokenizerFiles(const TokenizerFiles& files, const std::string& folder);

// The tokenizer as tokenizer.json and tokenizer_config.json.
// Errors  kInvalidArgument: parts that do not fit together (ids out of range, a merge of unknown tokens,
//         tokens that are equal or not UTF-8). kUnimplemented: an unknown pre_tokenizer; it is named.
absl::StatusOr<TokenizerFiles> ToTokenizerFiles(const TokenizerDefinition& definition);

// GPT-2's vocab.json (token to id) and merges.txt.
absl::StatusOr<TokenizerDefinition> DefinitionFromVocabAndMerges(absl::string_view vocab_json,
                                                                 absl::string_view merges_txt);

}  // namespace qst

#endif  // QST_WORKER_TEXT_TOKENIZER_FILES_H_
