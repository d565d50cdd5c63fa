// tokenizer.model: the model file of SentencePiece, which LLaMA and Mistral were published with.
#ifndef QST_WORKER_TEXT_SENTENCE_PIECE_FILE_H_
#define QST_WORKER_TEXT_SENTENCE_PIECE_FILE_H_

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "worker/text/tokenizer_definition.h"

namespace qst {

// Reads the contents of a tokenizer.model. What it gives encodes as SentencePiece does, but for control symbols that
// the text spells out ("<s>"): those are recognised here, as chat templates need it.
// Errors  kInvalidArgument: not such a file, or malformed.
//         kUnimplemented: a kind of model, or a rule, that cannot be followed exactly; it is named.
absl::StatusOr<TokenizerDefinition> DefinitionFromSentencePiece(absl::string_view file);

}  // namespace qst

#endif  // QST_WORKER_TEXT_SENTENCE_PIECE_FILE_H_
