#include "worker/infer/text_stream.h"

#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"

namespace qst {
namespace {

// How a decoder shows bytes that are no character, or not one yet.
constexpr absl::string_view kReplacement = "\xEF\xBF\xBD";
// Tokens whose text decides how those behind them are written.
constexpr std::size_t kContextTokens = 6;
// A character has at most four bytes; with one token a byte, text that stays incomplete longer is not UTF-8.
constexpr std::size_t kMaxWaiting = 8;

}  // namespace

TextStream::TextStream(const Tokenizer* tokenizer, const std::vector<std::int32_t>& prompt) : tokenizer_(tokenizer) {
  const std::size_t kept = std::min(prompt.size(), kContextTokens);
  tokens_.assign(prompt.end() - static_cast<std::ptrdiff_t>(kept), prompt.end());
  num_context_ = kept;
}

std::string TextStream::TextOf(std::size_t end) const {
  return tokenizer_->Decode(
      std::vector<std::int32_t>(tokens_.begin(), tokens_.begin() + static_cast<std::ptrdiff_t>(end)),
      /*skip_special=*/true);
}

std::string TextStream::Add(std::int32_t token) {
  tokens_.push_back(token);
  if (tokens_.size() - num_context_ < kMaxWaiting && absl::EndsWith(TextOf(tokens_.size()), kReplacement)) return "";
  return Finish();
}

std::string TextStream::Finish() {
  const std::string context = TextOf(num_context_);
  std::string text = TextOf(tokens_.size());
  absl::string_view before = context;
  // Decoding is left to right, so what was there stays; only a context that ends inside a character shows what the
  // next tokens may turn into one.
  while (!absl::StartsWith(text, before) && absl::ConsumeSuffix(&before, kReplacement)) {
  }
  if (absl::StartsWith(text, before)) text.erase(0, before.size());
  num_context_ = std::min(tokens_.size(), kContextTokens);
  tokens_.erase(tokens_.begin(), tokens_.end() - static_cast<std::ptrdiff_t>(num_context_));
  return text;
}

}  // namespace qst
