#include "worker/text/unicode_text.h"

#include <utf8proc.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "worker/text/char_class.h"
#include "worker/text/unicode_tables.h"
#include "worker/text/utf8.h"

namespace qst {
namespace {

// Lower case that came after utf8proc's Unicode 15: code points, and the distance to their lower case.
struct NewCase {
  CodePointRange range;
  int32_t distance;
};
constexpr NewCase kNewCases[] = {
    {{0x1C89, 0x1C89}, 1},      {{0xA7CB, 0xA7CB}, 0x264 - 0xA7CB},
    {{0xA7CC, 0xA7CC}, 1},      {{0xA7CE, 0xA7CE}, 1},
    {{0xA7D2, 0xA7D2}, 1},      {{0xA7D4, 0xA7D4}, 1},
    {{0xA7DA, 0xA7DA}, 1},      {{0xA7DC, 0xA7DC}, 0x19B - 0xA7DC},
    {{0x10D50, 0x10D65}, 0x20}, {{0x16EA0, 0x16EB8}, 0x1B},
};

// Blocks whose characters all forms of composition leave as they are, and that never join what stands before them.
constexpr CodePointRange kQuickRanges[] = {
    {0x0, 0x2FF},     {0x388, 0x482},   {0x48A, 0x52F},   {0x2010, 0x2027}, {0x2030, 0x205E},   {0x3041, 0x3096},
    {0x30A1, 0x30FA}, {0x3400, 0x4DBF}, {0x4E00, 0x9FFF}, {0xAC00, 0xD7A3}, {0x1F300, 0x1FAFF},
};

bool IsInert(uint32_t c) { return c >= kInertRanges[0].first && IsInRanges(c, kInertRanges, kInertRangesSize); }

bool IsQuick(uint32_t c) { return c < 0x300 || IsInRanges(c, kQuickRanges, std::size(kQuickRanges)); }

int CombiningClass(utf8proc_int32_t c) { return utf8proc_get_property(c)->combining_class; }

// Appends decomposed characters that no inert one lies between, put into order and composed.
void AppendOrdered(bool composes, std::vector<utf8proc_int32_t>* characters, std::string* result) {
  if (characters->empty()) return;
  // utf8proc sorts by swapping neighbours, which is slow for long runs of marks; in order, they cost nothing.
  for (auto run = characters->begin(); run != characters->end();) {
    if (CombiningClass(*run) == 0) {
      ++run;
      continue;
    }
    const auto end = std::find_if(run, characters->end(), [](utf8proc_int32_t c) { return CombiningClass(c) == 0; });
    std::stable_sort(run, end,
                     [](utf8proc_int32_t a, utf8proc_int32_t b) { return CombiningClass(a) < CombiningClass(b); });
    run = end;
  }
  utf8proc_ssize_t size = static_cast<utf8proc_ssize_t>(characters->size());
  if (composes) {
    size = utf8proc_normalize_utf32(characters->data(), size,
                                    static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
  }
  for (utf8proc_ssize_t i = 0; i < size; ++i) AppendUtf8(static_cast<uint32_t>((*characters)[i]), result);
  characters->clear();
}

// The form of a text without short cuts.
void AppendNormalForm(NormalForm form, absl::string_view text, std::string* result) {
  const bool composes = form == NormalForm::kNfc || form == NormalForm::kNfkc;
  const bool is_compatible = form == NormalForm::kNfkc || form == NormalForm::kNfkd;
  const auto options = static_cast<utf8proc_option_t>(
      UTF8PROC_STABLE | (composes ? UTF8PROC_COMPOSE : UTF8PROC_DECOMPOSE) | (is_compatible ? UTF8PROC_COMPAT : 0));
  std::vector<utf8proc_int32_t> characters;
  int last_boundclass = 0;
  for (size_t i = 0; i < text.size();) {
    uint8_t num_bytes = 0;
    const uint32_t c = DecodeValidUtf8(text, i, &num_bytes);
    i += num_bytes;
    if (IsInert(c)) {
      AppendOrdered(composes, &characters, result);
      AppendUtf8(c, result);
      continue;
    }
    // The longest decomposition of one character has 18.
    utf8proc_int32_t parts[32];
    const utf8proc_ssize_t count =
        utf8proc_decompose_char(static_cast<utf8proc_int32_t>(c), parts, std::size(parts), options, &last_boundclass);
    if (count < 0 || count > static_cast<utf8proc_ssize_t>(std::size(parts))) {
      characters.push_back(static_cast<utf8proc_int32_t>(c));
    } else {
      characters.insert(characters.end(), parts, parts + count);
    }
  }
  AppendOrdered(composes, &characters, result);
}

std::string ToNfc(absl::string_view text) {
  std::string result;
  result.reserve(text.size());
  size_t done = 0;
  size_t previous = 0;  // where the character before `i` begins
  for (size_t i = 0; i < text.size();) {
    uint8_t num_bytes = 0;
    const uint32_t c = DecodeValidUtf8(text, i, &num_bytes);
    if (IsQuick(c)) {
      previous = i;
      i += num_bytes;
      continue;
    }
    // What is not quick may join the character before it, and nothing joins across a quick one that follows.
    const size_t begin = std::max(previous, done);
    size_t end = i;
    while (end < text.size() && !IsQuick(DecodeValidUtf8(text, end, &num_bytes))) end += num_bytes;
    result.append(text.data() + done, begin - done);
    AppendNormalForm(NormalForm::kNfc, text.substr(begin, end - begin), &result);
    done = end;
    previous = end;
    i = end;
  }
  result.append(text.data() + done, text.size() - done);
  return result;
}

bool IsAscii(absl::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return (c & 0x80) == 0; });
}

}  // namespace

std::string ToNormalForm(NormalForm form, absl::string_view text) {
  if (form == NormalForm::kNfc) return ToNfc(text);
  if (IsAscii(text)) return std::string(text);
  std::string result;
  result.reserve(text.size());
  AppendNormalForm(form, text, &result);
  return result;
}

std::string ToLowercase(absl::string_view text) {
  std::string result;
  result.reserve(text.size());
  for (size_t i = 0; i < text.size();) {
    uint8_t num_bytes = 0;
    const uint32_t c = DecodeValidUtf8(text, i, &num_bytes);
    i += num_bytes;
    if (c == 0x130) {
      result += "i\xCC\x87";  // the only one whose lower case is two characters
      continue;
    }
    uint32_t lower = static_cast<uint32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c)));
    for (const NewCase& added : kNewCases) {
      if (c >= added.range.first && c <= added.range.last)
        lower = static_cast<uint32_t>(static_cast<int32_t>(c) + added.distance);
    }
    AppendUtf8(lower, &result);
  }
  return result;
}

std::string RemoveMarks(absl::string_view text) {
  std::string result;
  result.reserve(text.size());
  for (size_t i = 0; i < text.size();) {
    uint8_t num_bytes = 0;
    const uint32_t c = DecodeValidUtf8(text, i, &num_bytes);
    if (!IsInRanges(c, kMarkRanges, kMarkRangesSize)) result.append(text.data() + i, num_bytes);
    i += num_bytes;
  }
  return result;
}

}  // namespace qst
