// The files of a tokenizer in a Hugging Face model folder, and making them from other forms. The model
// store keeps tokenizer.json and tokenizer_config.json of every model, whatever it was imported from.
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

// Reads a model folder. Without tokenizer.json, vocab.json and merges.txt (GPT-2's own form, which OPT
// models have) are converted.
// Errors  kNotFound: neither is there. kInvalidArgument: too large or, if converted, malformed.
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
