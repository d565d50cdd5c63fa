// What the files beside a vocabulary say about it, for a tokenizer that is converted (tokenizer_files.h).
#ifndef QST_WORKER_TEXT_TOKENIZER_SETTINGS_H_
#define QST_WORKER_TEXT_TOKENIZER_SETTINGS_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/text/tokenizer_definition.h"
#include "worker/text/tokenizer_files.h"

namespace qst {

// Adds the tokens of added_tokens.json (empty: none) and of tokenizer_config.json, the roles of tokens, and the
// settings, all as the transformers library understands them.
// Errors  kInvalidArgument: malformed, or ids that leave a gap or contradict the vocabulary; the message names the
// file.
//         kUnimplemented: a setting or a class of tokenizer that cannot be followed; it is named.
absl::Status ApplyTokenizerSettings(const TokenizerFiles& files, const std::string& added_tokens_json,
                                    TokenizerDefinition* definition);

// tokenizer_config.json with the roles that neither it nor special_tokens_map.json names; empty if it is empty.
absl::StatusOr<std::string> CompleteTokenizerConfig(const TokenizerFiles& files, const TokenizerDefinition& definition);

}  // namespace qst

#endif  // QST_WORKER_TEXT_TOKENIZER_SETTINGS_H_
