#include "client/describe_view.h"

#include <algorithm>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "client/format.h"

namespace qst {
namespace {

constexpr int kMaxLabels = 12;
constexpr int kMaxColumns = 20;
constexpr char kLossOn[] = "\x1b[1;32m";
constexpr char kLossOff[] = "\x1b[0m";

bool IsControl(char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; }

// Text with its line breaks; other control characters must not reach a terminal.
std::string Printable(absl::string_view text) {
  std::string shown;
  for (const char c : text) {
    if (c == '\n' || c == '\t' || !IsControl(c)) {
      shown.push_back(c);
    } else {
      absl::StrAppend(&shown, VisibleText(absl::string_view(&c, 1)));
    }
  }
  return shown;
}

}  // namespace

std::string VisibleText(absl::string_view text) {
  std::string shown;
  for (const char c : text) {
    if (!IsControl(c)) {
      shown.push_back(c);
    } else if (c == '\n') {
      shown += "\\n";
    } else if (c == '\t') {
      shown += "\\t";
    } else if (c == '\r') {
      shown += "\\r";
    } else {
      absl::StrAppendFormat(&shown, "\\x%02x", static_cast<unsigned char>(c));
    }
  }
  return shown;
}

void PrintSummary(std::ostream& out, const v1::DescribeDatasetResponse& description, uint32_t max_length) {
  std::vector<std::vector<std::string>> rows;
  rows.push_back({"kind", OneLine(description.kind())});
  rows.push_back({"format", OneLine(description.format())});
  std::vector<std::string> columns;
  for (const std::string& column : description.columns()) {
    if (static_cast<int>(columns.size()) == kMaxColumns) {
      columns.push_back(absl::StrCat("and ", description.columns_size() - kMaxColumns, " more"));
      break;
    }
    columns.push_back(OneLine(column));
  }
  if (!columns.empty()) rows.push_back({"columns", absl::StrJoin(columns, ", ")});
  rows.push_back({"rows", absl::StrCat(description.num_examples())});
  std::vector<std::string> labels;
  for (const auto& label : description.labels()) {
    if (static_cast<int>(labels.size()) == kMaxLabels) {
      labels.push_back(absl::StrCat("and ", description.labels_size() - kMaxLabels, " more"));
      break;
    }
    labels.push_back(absl::StrCat(Fit(OneLine(label.label()), 40), " ", label.count()));
  }
  if (!labels.empty()) rows.push_back({"labels", absl::StrJoin(labels, ", ")});
  if (description.has_tokens()) {
    const auto& tokens = description.tokens();
    rows.push_back(
        {"tokens",
         absl::StrCat(tokens.total(),
                      tokens.target() > 0 ? absl::StrCat(", of which ", tokens.target(), " bear loss") : "")});
    rows.push_back(
        {"per row", absl::StrCat("shortest ", tokens.shortest(), ", 50 % ", tokens.p50(), ", 90 % ", tokens.p90(),
                                 ", 95 % ", tokens.p95(), ", 99 % ", tokens.p99(), ", longest ", tokens.longest())});
    std::string truncated = absl::StrCat(tokens.truncated(), " longer than ", max_length, " tokens");
    if (tokens.without_target() > 0) {
      absl::StrAppend(&truncated, "; ", tokens.without_target(), " have nothing to learn within that and are left out");
    }
    rows.push_back({"truncated", truncated});
  }
  if (!description.template_().empty()) rows.push_back({"template", OneLine(description.template_())});
  out << FormatTable(rows);
}

void PrintExample(std::ostream& out, const v1::DescribeDatasetResponse::RenderedExample& example,
                  absl::string_view format, bool is_terminal) {
  int num_tokens = 0, num_loss = 0;
  for (const auto& segment : example.segments()) {
    num_tokens += segment.token_ids_size();
    if (segment.bears_loss()) num_loss += segment.token_ids_size();
  }
  out << "\n--- " << (format == "json" ? "element " : "line ") << example.line() << ": " << num_tokens << " tokens";
  if (num_loss > 0) out << ", " << num_loss << " bear loss";
  if (example.is_truncated()) out << ", cut";
  if (!example.label().empty()) out << ", label " << OneLine(example.label());
  out << " ---\n";
  for (const auto& segment : example.segments()) {
    const std::string text = Printable(segment.text());
    if (!segment.bears_loss()) {
      out << text;
    } else if (is_terminal) {
      out << kLossOn << text << kLossOff;
    } else {
      out << "[[" << text << "]]";
    }
  }
  out << "\n";
}

}  // namespace qst
