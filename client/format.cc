#include "client/format.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace qst {

std::string FormatBytes(uint64_t bytes) {
  if (bytes < 1024) return absl::StrCat(bytes, " B");
  double value = static_cast<double>(bytes);
  const char* unit = "";
  for (const char* next : {"KiB", "MiB", "GiB", "TiB", "PiB"}) {
    if (value < 1023.95) break;
    value /= 1024;
    unit = next;
  }
  return absl::StrFormat("%.1f %s", value, unit);
}

std::string FormatCount(uint64_t count) {
  if (count < 10000) return absl::StrCat(count);
  double value = static_cast<double>(count);
  const char* unit = "";
  for (const char* next : {"k", "M", "G", "T"}) {
    if (value < 999.95) break;
    value /= 1000;
    unit = next;
  }
  return absl::StrFormat("%.1f %s", value, unit);
}

std::string FormatSeconds(double seconds) {
  if (!(seconds >= 0) || seconds > 1e8) return "-";
  const int64_t s = std::llround(seconds);
  if (s < 3600) return absl::StrFormat("%d:%02d", s / 60, s % 60);
  return absl::StrFormat("%d:%02d:%02d", s / 3600, s / 60 % 60, s % 60);
}

std::string FormatMetric(double value) {
  const double magnitude = std::fabs(value);
  if (!std::isfinite(value)) return absl::StrCat(value);
  if (magnitude != 0 && (magnitude < 1e-3 || magnitude >= 1e6)) return absl::StrFormat("%.3g", value);
  const int decimals = magnitude < 1 ? 4 : magnitude < 10 ? 3 : magnitude < 100 ? 2 : magnitude < 1000 ? 1 : 0;
  return absl::StrFormat("%.*f", decimals, value);
}

std::string FormatTime(int64_t unix_ms) {
  if (unix_ms == 0) return "-";
  return absl::FormatTime("%Y-%m-%d %H:%M:%S", absl::FromUnixMillis(unix_ms), absl::LocalTimeZone());
}

std::string OneLine(absl::string_view text) {
  std::string line(text);
  for (char& c : line) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = ' ';
  }
  return std::string(absl::StripAsciiWhitespace(line));
}

size_t TextWidth(absl::string_view text) {
  return std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xc0) != 0x80; });
}

std::string Fit(absl::string_view text, size_t width) {
  if (TextWidth(text) <= width) return std::string(text);
  const bool dots = width > 3;
  const size_t keep = dots ? width - 3 : width;
  size_t end = 0;
  for (size_t shown = 0; end < text.size(); ++end) {
    if ((text[end] & 0xc0) != 0x80 && shown++ == keep) break;
  }
  return absl::StrCat(text.substr(0, end), dots ? "..." : "");
}

std::string FormatTable(const std::vector<std::vector<std::string>>& rows, const std::vector<size_t>& right_aligned) {
  std::vector<size_t> widths;
  for (const auto& row : rows) {
    widths.resize(std::max(widths.size(), row.size()));
    for (size_t c = 0; c < row.size(); ++c) widths[c] = std::max(widths[c], TextWidth(row[c]));
  }
  std::string table;
  for (const auto& row : rows) {
    std::string line;
    for (size_t c = 0; c < row.size(); ++c) {
      const std::string padding(widths[c] - TextWidth(row[c]), ' ');
      const bool right = std::find(right_aligned.begin(), right_aligned.end(), c) != right_aligned.end();
      absl::StrAppend(&line, c == 0 ? "" : "  ", right ? padding : "", row[c], right ? "" : padding);
    }
    absl::StrAppend(&table, absl::StripTrailingAsciiWhitespace(line), "\n");
  }
  return table;
}

}  // namespace qst
