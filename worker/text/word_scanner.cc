#include "worker/text/word_scanner.h"

#include "worker/text/char_class.h"

namespace qst {
namespace {

constexpr char kGpt2Text[] = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
constexpr char kLlama3Text[] =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|)"
    R"(\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr char kQwen2Text[] =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|)"
    R"(\s*[\r\n]+|\s+(?!\S)|\s+)";

bool IsLineBreak(char c) { return c == '\r' || c == '\n'; }

class Scanner {
 public:
  explicit Scanner(absl::string_view text) : text_(text), classes_(CharClassTable()) {}

  // The end of the word that begins at `begin`.
  size_t Gpt2WordEnd(size_t begin) const {
    if (text_[begin] == '\'') {
      if (const size_t end = ContractionEnd(begin, /*ignores_case=*/false); end != 0) return end;
    }
    // One space goes with what follows it, unless that is a space, too.
    const size_t first = text_[begin] == ' ' && begin + 1 < text_.size() ? begin + 1 : begin;
    const Char c = At(first);
    return c.type == CharClass::kSpace ? SpacesEnd(begin) : RunEnd(first + c.num_bytes, c.type);
  }

  size_t Llama3WordEnd(size_t begin, int max_digits) const {
    if (text_[begin] == '\'') {
      if (const size_t end = ContractionEnd(begin, /*ignores_case=*/true); end != 0) return end;
    }
    const Char c = At(begin);
    size_t next = begin + c.num_bytes;
    if (c.type == CharClass::kLetter) return RunEnd(next, CharClass::kLetter);
    if (c.type == CharClass::kNumber) {
      for (int digits = 1; digits < max_digits && next < text_.size(); ++digits) {
        const Char digit = At(next);
        if (digit.type != CharClass::kNumber) break;
        next += digit.num_bytes;
      }
      return next;
    }
    // Any one sign but a line break goes with the letters that follow it.
    const Char second = next < text_.size() ? At(next) : Char();
    if (next < text_.size() && second.type == CharClass::kLetter && !IsLineBreak(text_[begin])) {
      return RunEnd(next, CharClass::kLetter);
    }
    const bool takes_space = text_[begin] == ' ' && next < text_.size() && second.type == CharClass::kOther;
    if (c.type == CharClass::kOther || takes_space) {
      size_t end = RunEnd(next, CharClass::kOther);
      while (end < text_.size() && IsLineBreak(text_[end])) ++end;
      return end;
    }
    const size_t line_end = LastLineBreakEnd(begin);
    return line_end != 0 ? line_end : SpacesEnd(begin);
  }

  void AppendNumbers(std::vector<TextRange>* numbers) const {
    for (size_t i = 0; i < text_.size();) {
      const Char c = At(i);
      if (c.type == CharClass::kNumber) numbers->push_back({i, i + c.num_bytes});
      i += c.num_bytes;
    }
  }

 private:
  struct Char {
    CharClass type = CharClass::kOther;
    uint8_t num_bytes = 1;
  };

  Char At(size_t offset) const {
    Char c;
    c.type = classes_[DecodeValidUtf8(text_, offset, &c.num_bytes)];
    return c;
  }

  size_t RunEnd(size_t offset, CharClass type) const {
    while (offset < text_.size()) {
      const Char c = At(offset);
      if (c.type != type) break;
      offset += c.num_bytes;
    }
    return offset;
  }

  // \s+(?!\S)|\s+ : all of the white space at the end of the text; before a word, all but the last character,
  // which the word may take; but at least one.
  size_t SpacesEnd(size_t begin) const {
    size_t last = begin;
    size_t end = begin;
    while (end < text_.size()) {
      const Char c = At(end);
      if (c.type != CharClass::kSpace) return last == begin ? end : last;
      last = end;
      end += c.num_bytes;
    }
    return end;
  }

  // \s*[\r\n]+ : the end of the last line break in the white space at `begin`, 0 if there is none.
  size_t LastLineBreakEnd(size_t begin) const {
    size_t result = 0;
    for (size_t end = begin; end < text_.size();) {
      const Char c = At(end);
      if (c.type != CharClass::kSpace) break;
      end += c.num_bytes;
      if (IsLineBreak(text_[end - 1])) result = end;
    }
    return result;
  }

  // 's|'t|'re|'ve|'m|'ll|'d at an apostrophe; 0 if there is none.
  size_t ContractionEnd(size_t begin, bool ignores_case) const {
    auto letter = [&](size_t i) {
      const char c = i < text_.size() ? text_[i] : '\0';
      return ignores_case && c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
    };
    const char second = letter(begin + 2);
    switch (letter(begin + 1)) {
      case 's':
      case 't':
      case 'm':
      case 'd':
        return begin + 2;
      case 'r':
      case 'v':
        return second == 'e' ? begin + 3 : 0;
      case 'l':
        return second == 'l' ? begin + 3 : 0;
      case '\xC5':  // U+017F, the long s, is an s where case does not matter
        return ignores_case && second == '\xBF' ? begin + 3 : 0;
      default:
        return 0;
    }
  }

  const absl::string_view text_;
  const CharClass* const classes_;
};

}  // namespace

absl::string_view WordPatternText(WordPattern pattern) {
  switch (pattern) {
    case WordPattern::kGpt2:
      return kGpt2Text;
    case WordPattern::kLlama3:
      return kLlama3Text;
    case WordPattern::kQwen2:
      return kQwen2Text;
  }
  return "";
}

std::optional<WordPattern> FindWordPattern(absl::string_view text) {
  for (const WordPattern pattern : {WordPattern::kGpt2, WordPattern::kLlama3, WordPattern::kQwen2}) {
    if (text == WordPatternText(pattern)) return pattern;
  }
  return std::nullopt;
}

void AppendWords(WordPattern pattern, absl::string_view text, size_t base, std::vector<TextRange>* words) {
  const Scanner scanner(text);
  const int max_digits = pattern == WordPattern::kLlama3 ? 3 : 1;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end =
        pattern == WordPattern::kGpt2 ? scanner.Gpt2WordEnd(begin) : scanner.Llama3WordEnd(begin, max_digits);
    words->push_back({base + begin, base + end});
    begin = end;
  }
}

void AppendNumbers(absl::string_view text, std::vector<TextRange>* numbers) { Scanner(text).AppendNumbers(numbers); }

}  // namespace qst
