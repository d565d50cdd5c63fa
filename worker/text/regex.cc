#include "worker/text/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "proto/support/status_macros.h"
#include "worker/text/unicode_tables.h"
#include "worker/text/utf8.h"

namespace qst {
namespace {

constexpr size_t kJitStackBytes = 4 << 20;
constexpr uint32_t kHeapKilobytes = 256 << 10;
// Steps of backtracking: so many at each place of the text, and as many again for each byte that attempts may share
// which need more, such as those on a long run of spaces. Tokenizers' patterns need a few. PCRE2's own limit is for one
// place and starts anew at the next, so that a pattern that stays below it could take days.
constexpr uint32_t kStepsPerByte = 1000;

struct Pcre2Deleter {
  void operator()(pcre2_code* p) const { pcre2_code_free(p); }
  void operator()(pcre2_compile_context* p) const { pcre2_compile_context_free(p); }
  void operator()(pcre2_match_data* p) const { pcre2_match_data_free(p); }
  void operator()(pcre2_match_context* p) const { pcre2_match_context_free(p); }
  void operator()(pcre2_jit_stack* p) const { pcre2_jit_stack_free(p); }
};
template <typename T>
using Pcre2Ptr = std::unique_ptr<T, Pcre2Deleter>;

std::string Pcre2Message(int code) {
  PCRE2_UCHAR buffer[256];
  pcre2_get_error_message(code, buffer, sizeof(buffer));
  return reinterpret_cast<const char*>(buffer);
}

absl::Status Differs(absl::string_view pattern, absl::string_view what) {
  return absl::UnimplementedError(absl::StrCat("pattern \"", pattern, "\": ", what, " is not supported"));
}

// Ranges as members of a class.
std::string ClassMembers(const CodePointRange* ranges, size_t size) {
  std::string result;
  for (size_t i = 0; i < size; ++i) {
    absl::StrAppendFormat(&result, "\\x{%X}-\\x{%X}", ranges[i].first, ranges[i].last);
  }
  return result;
}

// Characters of a property (\p{L} or \p{N}) that are younger than PCRE2's tables; empty for other properties.
std::string NewMembers(absl::string_view property) {
  if (property == "{L}") return ClassMembers(kNewLetterRanges, kNewLetterRangesSize);
  if (property == "{N}") return ClassMembers(kNewNumberRanges, kNewNumberRangesSize);
  return "";
}

// Rewrites what is spelled alike and means something else. PCRE2's \s has U+180E, Oniguruma's is the
// property White_Space; and PCRE2's letters and numbers are those of an older Unicode.
absl::StatusOr<std::string> ToPcre2Syntax(absl::string_view pattern) {
  std::string result;
  bool in_class = false;
  for (size_t i = 0; i < pattern.size(); ++i) {
    const char c = pattern[i];
    const char next = i + 1 < pattern.size() ? pattern[i + 1] : '\0';
    if (c == '\\') {
      ++i;
      if (next == 's') {
        result += "\\p{White_Space}";
      } else if (next == 'S') {
        result += "\\P{White_Space}";
      } else if (next == 'h' || next == 'H' || next == 'Q' || next == 'E' || next == 'K' || next == 'C' ||
                 next == 'G') {
        return Differs(pattern, absl::StrCat("\\", absl::string_view(&next, 1)));
      } else {
        std::string escape(1, c);
        if (i < pattern.size()) escape += next;
        // \p{L}: these braces are no quantifier.
        std::string added;
        if (i + 1 < pattern.size() && pattern[i + 1] == '{') {
          const size_t end = pattern.find('}', i);
          if (end == absl::string_view::npos) return Differs(pattern, "a brace without end");
          const absl::string_view braces = pattern.substr(i + 1, end - i);
          if (next == 'p' || (next == 'P' && !in_class)) added = NewMembers(braces);
          absl::StrAppend(&escape, braces);
          i = end;
        }
        if (added.empty() || in_class) {
          absl::StrAppend(&result, escape, added);
        } else {
          escape[1] = 'p';
          absl::StrAppend(&result, next == 'P' ? "[^" : "[", escape, added, "]");
        }
      }
      continue;
    }
    if (in_class) {
      if (c == '[' && next != ':') return Differs(pattern, "a class within a class");
      if (c == '[') {
        const size_t end = pattern.find(":]", i + 2);
        if (end == absl::string_view::npos) return Differs(pattern, "a class within a class");
        result.append(pattern.data() + i, end + 2 - i);
        i = end + 1;
        continue;
      }
      if (c == '&' && next == '&') return Differs(pattern, "&& in a class");
      if (c == ']') in_class = false;
    } else if (c == '[') {
      in_class = true;
      result += c;
      if (next == '^') {
        result += next;
        ++i;
      }
      // A bracket that comes first is an ordinary member in PCRE2, an error or an empty class elsewhere.
      if (i + 1 < pattern.size() && pattern[i + 1] == ']') return Differs(pattern, "an empty class");
      continue;
    } else if (c == '}' && next == '+') {
      return Differs(pattern, "}+");
    } else if (c == '(' && next == '*') {
      return Differs(pattern, "a verb (*...)");
    }
    result += c;
  }
  return result;
}

}  // namespace

struct Regex::Code {
  Pcre2Ptr<pcre2_code> code;
  std::string pattern;
};

absl::StatusOr<Regex> Regex::Compile(absl::string_view pattern) {
  if (!IsValidUtf8(pattern)) return absl::InvalidArgumentError("a pattern is not valid UTF-8");
  QST_ASSIGN_OR_RETURN(const std::string translated, ToPcre2Syntax(pattern));
  Pcre2Ptr<pcre2_compile_context> context(pcre2_compile_context_create(nullptr));
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  // Ruby's ^ and $ are those of lines, always.
  const uint32_t options = PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C;
  int error = 0;
  PCRE2_SIZE offset = 0;
  auto code = std::make_shared<Code>();
  code->pattern = std::string(pattern);
  code->code.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(), options, &error,
                                 &offset, context.get()));
  if (code->code == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat("pattern \"", pattern, "\" does not compile: ", Pcre2Message(error)));
  }
  // Without JIT (a kernel that forbids it), PCRE2 interprets the pattern: slower, same matches.
  pcre2_jit_compile(code->code.get(), PCRE2_JIT_COMPLETE);
  return Regex(std::move(code));
}

// Searches in one text.
class Regex::Search {
 public:
  Search(const Code& code, absl::string_view text)
      : code_(code.code.get()),
        text_(text),
        data_(pcre2_match_data_create_from_pattern(code_, nullptr)),
        context_(pcre2_match_context_create(nullptr)),
        steps_left_(static_cast<uint64_t>(kStepsPerByte) * (text.size() + 16)) {
    pcre2_set_heap_limit(context_.get(), kHeapKilobytes);
  }

  // The first match that starts at `offset` or later. The result is pcre2_match's.
  int Find(size_t offset) {
    const int count = Match(offset, 0, kStepsPerByte);
    return count == PCRE2_ERROR_MATCHLIMIT ? FindPlaceByPlace(offset) : count;
  }

  TextRange found() const {
    const PCRE2_SIZE* const bounds = pcre2_get_ovector_pointer(data_.get());
    return {bounds[0], bounds[1]};
  }

 private:
  int Match(size_t offset, uint32_t options, uint64_t max_steps) {
    pcre2_set_match_limit(context_.get(), static_cast<uint32_t>(std::min<uint64_t>(max_steps, 0xffffffff)));
    const auto match = [&] {
      return pcre2_match(code_, reinterpret_cast<PCRE2_SPTR>(text_.data()), text_.size(), offset,
                         options | PCRE2_NO_UTF_CHECK, data_.get(), context_.get());
    };
    const int count = match();
    if (count != PCRE2_ERROR_JIT_STACKLIMIT || stack_ != nullptr) return count;
    stack_.reset(pcre2_jit_stack_create(32 << 10, kJitStackBytes, nullptr));
    pcre2_jit_stack_assign(context_.get(), nullptr, stack_.get());
    return match();
  }

  // The same, with as many steps at each place as are left in all. What PCRE2 has used is not known: attempts with more
  // and more steps are paid for in full.
  int FindPlaceByPlace(size_t offset) {
    while (offset <= text_.size()) {
      uint64_t max_steps = kStepsPerByte;
      int count = Match(offset, PCRE2_ANCHORED, max_steps);
      while (count == PCRE2_ERROR_MATCHLIMIT && steps_left_ >= 4 * max_steps) {
        max_steps *= 4;
        steps_left_ -= max_steps;
        count = Match(offset, PCRE2_ANCHORED, max_steps);
      }
      if (count != PCRE2_ERROR_NOMATCH) return count;
      offset += offset < text_.size() ? Utf8CharAt(text_, offset).num_bytes : 1;
    }
    return PCRE2_ERROR_NOMATCH;
  }

  const pcre2_code* const code_;
  const absl::string_view text_;
  const Pcre2Ptr<pcre2_match_data> data_;
  const Pcre2Ptr<pcre2_match_context> context_;
  Pcre2Ptr<pcre2_jit_stack> stack_;
  uint64_t steps_left_;
};

absl::StatusOr<std::vector<TextRange>> Regex::FindAll(absl::string_view text) const {
  std::vector<TextRange> matches;
  if (text.empty()) return matches;
  Search search(*code_, text);
  size_t offset = 0;
  while (offset <= text.size()) {
    const int count = search.Find(offset);
    if (count == PCRE2_ERROR_NOMATCH) break;
    if (count < 0) {
      return absl::ResourceExhaustedError(absl::StrCat("pattern \"", code_->pattern, "\" failed on a text of ",
                                                       text.size(), " bytes: ", Pcre2Message(count)));
    }
    const TextRange found = search.found();
    // \K could put the start after the end; it is refused above, but a range must never be inverted.
    if (found.end < found.begin) return absl::InternalError("a match that ends before it starts");
    matches.push_back(found);
    offset = found.end;
    if (found.begin == found.end) {
      if (offset >= text.size()) break;
      offset += Utf8CharAt(text, offset).num_bytes;
    }
  }
  return matches;
}

}  // namespace qst
