// Numbers, times and tables for people.
#ifndef QST_CLIENT_FORMAT_H_
#define QST_CLIENT_FORMAT_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace qst {

// "512 B", "1.5 MiB".
std::string FormatBytes(uint64_t bytes);

// "842", "134.5 M".
std::string FormatCount(uint64_t count);

// "0:07", "12:30", "3:05:00"; "-" for negative and absurd times.
std::string FormatSeconds(double seconds);

// Four significant digits, never more than nine characters: "0.9142", "3.210", "12346".
std::string FormatMetric(double value);

// Local time "2026-11-21 22:10:03"; "-" for 0.
std::string FormatTime(int64_t unix_ms);

// Control characters (line breaks, escape sequences) become spaces: fit for one line of a terminal.
std::string OneLine(absl::string_view text);

// At most `width` characters, cut with "...". UTF-8 characters stay whole.
std::string Fit(absl::string_view text, size_t width);

// Characters (not bytes) of UTF-8 text.
size_t TextWidth(absl::string_view text);

// First row is the header. Columns are as wide as their widest cell, apart by two spaces; those listed in
// `right_aligned` have their text at the right.
std::string FormatTable(const std::vector<std::vector<std::string>>& rows,
                        const std::vector<size_t>& right_aligned = {});

}  // namespace qst

#endif  // QST_CLIENT_FORMAT_H_
