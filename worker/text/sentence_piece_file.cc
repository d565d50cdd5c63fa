#include "worker/text/sentence_piece_file.h"

#include <limits>
#include <optional>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "proto/support/status_macros.h"
#include "worker/text/sentence_piece.pb.h"
#include "worker/text/utf8.h"

namespace qst {
namespace {

using TokenType = TokenizerDefinition::TokenType;

constexpr char kWayOut[] = "; save the model's tokenizer.json with the transformers library and put it into the folder";

absl::Status NotSupported(absl::string_view what) {
  return absl::UnimplementedError(absl::StrCat(what, " is not supported", kWayOut));
}

absl::Status CheckKind(const sentence_piece::Model& model) {
  switch (model.trainer().model_type()) {
    case 2:
      break;
    case 1:
      return NotSupported("a unigram model");
    case 3:
      return NotSupported("a word model");
    case 4:
      return NotSupported("a character model");
    default:
      return absl::InvalidArgumentError(absl::StrCat("unknown model type ", model.trainer().model_type()));
  }
  const sentence_piece::Normalizer& rules = model.normalizer();
  if (!rules.precompiled_charsmap().empty()) {
    return NotSupported(absl::StrCat("normalization rule \"", ToValidUtf8(rules.name()), "\""));
  }
  if (!model.denormalizer().precompiled_charsmap().empty()) return NotSupported("a denormalization rule");
  if (!rules.escape_whitespaces()) return NotSupported("escape_whitespaces = false");
  if (model.trainer().treat_whitespace_as_suffix()) return NotSupported("treat_whitespace_as_suffix");
  return absl::OkStatus();
}

// What SentencePiece would do with the pieces and a list of merges cannot say.
absl::Status CheckPieces(const TokenizerDefinition& definition) {
  absl::flat_hash_set<absl::string_view> normal, unused;
  bool has_user_defined = false;
  for (size_t id = 0; id < definition.tokens.size(); ++id) {
    if (definition.token_types[id] == TokenType::kNormal) normal.insert(definition.tokens[id]);
    if (definition.token_types[id] == TokenType::kUnused) unused.insert(definition.tokens[id]);
    has_user_defined = has_user_defined || definition.token_types[id] == TokenType::kUserDefined;
  }
  // It cuts unused pieces up again after merging with them.
  if (!unused.empty()) return NotSupported(absl::StrCat("an unused piece (\"", ToValidUtf8(*unused.begin()), "\")"));
  if (has_user_defined && definition.removes_extra_spaces) {
    return NotSupported("remove_extra_whitespaces together with user-defined symbols");
  }
  // It merges characters that are no pieces, too.
  for (const absl::string_view piece : normal) {
    for (size_t i = 0; i < piece.size();) {
      const size_t num_bytes = Utf8CharAt(piece, i).num_bytes;
      if (num_bytes < piece.size() && !normal.contains(piece.substr(i, num_bytes))) {
        return NotSupported(absl::StrCat("a piece (\"", ToValidUtf8(piece), "\") with a character that is no piece"));
      }
      i += num_bytes;
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<TokenizerDefinition> DefinitionFromSentencePiece(absl::string_view file) {
  sentence_piece::Model model;
  if (file.size() > static_cast<size_t>(std::numeric_limits<int>::max()) ||
      !model.ParseFromArray(file.data(), static_cast<int>(file.size())) || model.pieces().empty()) {
    return absl::InvalidArgumentError(absl::StrCat("not a SentencePiece model", kWayOut));
  }
  QST_RETURN_IF_ERROR(CheckKind(model));
  TokenizerDefinition definition;
  definition.kind = TokenizerDefinition::Kind::kSentencePieceBpe;
  for (const sentence_piece::Piece& piece : model.pieces()) {
    if (piece.type() < 1 || piece.type() > 6) {
      return absl::InvalidArgumentError(
          absl::StrCat("piece ", definition.tokens.size(), " has the unknown type ", piece.type()));
    }
    if (piece.piece().empty()) {
      return absl::InvalidArgumentError(absl::StrCat("piece ", definition.tokens.size(), " is empty"));
    }
    definition.tokens.push_back(piece.piece());
    definition.scores.push_back(piece.score());
    definition.token_types.push_back(static_cast<TokenType>(piece.type()));
  }
  definition.add_space_prefix = model.normalizer().add_dummy_prefix();
  definition.removes_extra_spaces = model.normalizer().remove_extra_whitespaces();
  definition.late_user_defined_end = static_cast<int32_t>(definition.tokens.size());
  QST_RETURN_IF_ERROR(CheckPieces(definition));
  const sentence_piece::Trainer& trainer = model.trainer();
  for (const auto& [id, role] :
       {std::pair(trainer.unk_id(), &definition.unk_id), std::pair(trainer.bos_id(), &definition.bos_id),
        std::pair(trainer.eos_id(), &definition.eos_id), std::pair(trainer.pad_id(), &definition.pad_id)}) {
    if (id >= 0 && id < static_cast<int64_t>(definition.tokens.size())) *role = id;
  }
  for (size_t id = 0; id < definition.tokens.size(); ++id) {
    if (definition.token_types[id] == TokenType::kUnknown) definition.unk_id = static_cast<int32_t>(id);
  }
  return definition;
}

}  // namespace qst
