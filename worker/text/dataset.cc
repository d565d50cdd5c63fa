#include "worker/text/dataset.h"

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <fstream>
#include <limits>
#include <set>
#include <tuple>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "proto/support/status_macros.h"
#include "worker/text/chat_message.h"
#include "worker/text/json_util.h"
#include "worker/text/table.h"

namespace qst {
namespace {

using nlohmann::json;

// Names listed in a message.
constexpr size_t kMaxListed = 20;

std::string ListNames(const std::vector<std::string>& names) {
  std::vector<std::string> shown(names.begin(), names.begin() + std::min(names.size(), kMaxListed));
  if (shown.size() < names.size()) shown.push_back(absl::StrCat("and ", names.size() - shown.size(), " more"));
  return absl::StrJoin(shown, ", ");
}

DataFormat DetectFormat(absl::string_view name, absl::string_view bytes) {
  bytes = absl::StripLeadingAsciiWhitespace(SkipByteOrderMark(bytes));
  const bool is_array = absl::StartsWith(bytes, "[");
  const std::string lower = absl::AsciiStrToLower(name);
  if (absl::EndsWith(lower, ".jsonl") || absl::EndsWith(lower, ".ndjson")) return DataFormat::kJsonl;
  if (absl::EndsWith(lower, ".tsv")) return DataFormat::kTsv;
  if (absl::EndsWith(lower, ".csv")) return DataFormat::kCsv;
  if (absl::EndsWith(lower, ".txt")) return DataFormat::kText;
  // Many a .json file has one object a line.
  if (is_array || absl::StartsWith(bytes, "{")) return is_array ? DataFormat::kJson : DataFormat::kJsonl;
  if (absl::EndsWith(lower, ".json")) return DataFormat::kJson;
  const absl::string_view header = bytes.substr(0, bytes.find('\n'));
  if (absl::StrContains(header, '\t')) return DataFormat::kTsv;
  if (absl::StrContains(header, ',')) return DataFormat::kCsv;
  return DataFormat::kAuto;
}

constexpr std::pair<DataFormat, absl::string_view> kFormatNames[] = {
    {DataFormat::kAuto, "auto"}, {DataFormat::kJsonl, "jsonl"}, {DataFormat::kJson, "json"},
    {DataFormat::kTsv, "tsv"},   {DataFormat::kCsv, "csv"},     {DataFormat::kText, "text"}};

bool ParseNumber(absl::string_view text, double* value) {
  return absl::SimpleAtod(text, value) && std::fabs(*value) <= std::numeric_limits<float>::max();
}

// Columns that are named by their numbers.
std::vector<std::string> NumberedColumns(const DataColumns& columns) {
  std::vector<std::string> numbered;
  for (const std::string* name :
       {&columns.text, &columns.text_pair, &columns.label, &columns.instruction, &columns.input, &columns.output,
        &columns.prompt, &columns.completion, &columns.messages}) {
    int number = 0;
    if (absl::SimpleAtoi(*name, &number) && number > 0) numbered.push_back(*name);
  }
  return numbered;
}

// TSV and CSV. Where columns are named by numbers that the header does not have, it is no header.
absl::StatusOr<Table> ParseFields(DataFormat format, absl::string_view name, absl::string_view bytes,
                                  const DataColumns& columns) {
  const auto parse = format == DataFormat::kTsv ? &ParseTsvTable : &ParseCsvTable;
  absl::StatusOr<Table> table = parse(name, bytes, /*has_header=*/true);
  for (const std::string& column : NumberedColumns(columns)) {
    const bool has_column =
        table.ok() && std::find(table->columns.begin(), table->columns.end(), column) != table->columns.end();
    if (!has_column) return parse(name, bytes, /*has_header=*/false);
  }
  return table;
}

// Where the columns are; -1: absent.
struct ColumnIndices {
  int text = -1, text_pair = -1, label = -1, instruction = -1, input = -1, output = -1, prompt = -1, completion = -1,
      messages = -1;
};

class DatasetBuilder {
 public:
  DatasetBuilder(absl::string_view name, DataFormat format, const Table& table, const DatasetOptions& options)
      : name_(name), format_(format), table_(table), options_(options) {}

  absl::StatusOr<Dataset> Build() {
    if (table_.rows.empty()) return absl::InvalidArgumentError(absl::StrCat(name_, ": no rows"));
    QST_RETURN_IF_ERROR(FindColumns());
    Dataset dataset;
    dataset.name = std::string(name_);
    dataset.row_word = table_.row_word;
    dataset.format = format_;
    dataset.columns = table_.columns;
    QST_ASSIGN_OR_RETURN(dataset.kind, ChooseKind());
    QST_RETURN_IF_ERROR(CheckColumns(dataset.kind));
    dataset.examples.reserve(table_.rows.size());
    for (const Table::Row& row : table_.rows) {
      Example example;
      example.line = row.line;
      const absl::Status status = Fill(row, dataset.kind, &example);
      if (!status.ok()) return Annotate(status, absl::StrCat(name_, " ", table_.row_word, " ", row.line));
      dataset.examples.push_back(std::move(example));
    }
    if (dataset.kind == DataKind::kClassification && !options_.kind.has_value() && AreMeasures(dataset.examples)) {
      dataset.kind = DataKind::kRegression;
    }
    return dataset;
  }

 private:
  absl::Status FindColumns() {
    const DataColumns& names = options_.columns;
    QST_RETURN_IF_ERROR(
        Find(names.text, {"text", "sentence1", "question1", "premise", "question", "sentence", "#1 string", "content"},
             "text", &at_.text));
    QST_RETURN_IF_ERROR(Find(names.text_pair,
                             {"text_pair", "sentence2", "question2", "hypothesis", "sentence", "#2 string"},
                             "text_pair", &at_.text_pair));
    QST_RETURN_IF_ERROR(
        Find(names.label,
             {"label", "gold_label", "is_duplicate", "quality", "class", "category", "topic", "target", "score"},
             "label", &at_.label));
    QST_RETURN_IF_ERROR(Find(names.instruction, {"instruction"}, "instruction", &at_.instruction));
    QST_RETURN_IF_ERROR(Find(names.input, {"input", "context"}, "input", &at_.input));
    QST_RETURN_IF_ERROR(Find(names.output, {"output", "response"}, "output", &at_.output));
    QST_RETURN_IF_ERROR(Find(names.prompt, {"prompt"}, "prompt", &at_.prompt));
    QST_RETURN_IF_ERROR(Find(names.completion, {"completion", "response"}, "completion", &at_.completion));
    QST_RETURN_IF_ERROR(Find(names.messages, {"messages", "conversations"}, "messages", &at_.messages));
    if (names.text_pair.empty() && at_.text_pair == at_.text) at_.text_pair = -1;
    return absl::OkStatus();
  }

  absl::Status Find(const std::string& wanted, std::initializer_list<const char*> usual, absl::string_view role,
                    int* index) const {
    if (!wanted.empty()) {
      const auto it = std::find(table_.columns.begin(), table_.columns.end(), wanted);
      if (it == table_.columns.end()) {
        return absl::InvalidArgumentError(absl::StrCat(name_, ": no column \"", wanted, "\" (given for ", role,
                                                       "); columns: ", ListNames(table_.columns)));
      }
      *index = static_cast<int>(it - table_.columns.begin());
      return absl::OkStatus();
    }
    for (const char* name : usual) {
      for (size_t i = 0; i < table_.columns.size(); ++i) {
        if (absl::EqualsIgnoreCase(table_.columns[i], name)) {
          *index = static_cast<int>(i);
          return absl::OkStatus();
        }
      }
    }
    return absl::OkStatus();
  }

  absl::StatusOr<DataKind> ChooseKind() const {
    if (options_.kind.has_value()) return *options_.kind;
    // Columns that are named say what is meant; then those that are there.
    const DataColumns& names = options_.columns;
    if (!names.messages.empty()) return DataKind::kChat;
    if (!names.instruction.empty()) return DataKind::kInstruction;
    if (!names.prompt.empty()) return DataKind::kCompletion;
    if (!names.label.empty()) return DataKind::kClassification;
    if (at_.messages >= 0) return DataKind::kChat;
    if (at_.instruction >= 0) return DataKind::kInstruction;
    if (at_.prompt >= 0 && at_.completion >= 0) return DataKind::kCompletion;
    if (at_.text >= 0 && at_.label >= 0) return DataKind::kClassification;
    if (at_.text >= 0) return DataKind::kText;
    return absl::InvalidArgumentError(
        absl::StrCat(name_, ": cannot tell which columns to use; columns: ", ListNames(table_.columns),
                     "; name them in data.columns", HeaderAdvice()));
  }

  absl::Status CheckColumns(DataKind kind) const {
    std::vector<std::pair<const char*, int>> needed;
    switch (kind) {
      case DataKind::kClassification:
      case DataKind::kRegression:
        needed = {{"text", at_.text}};
        if (options_.needs_label) needed.push_back({"label", at_.label});
        break;
      case DataKind::kInstruction:
        needed = {{"instruction", at_.instruction}, {"output", at_.output}};
        break;
      case DataKind::kCompletion:
        needed = {{"prompt", at_.prompt}, {"completion", at_.completion}};
        break;
      case DataKind::kChat:
        needed = {{"messages", at_.messages}};
        break;
      case DataKind::kText:
        needed = {{"text", at_.text}};
        break;
    }
    for (const auto& [role, index] : needed) {
      if (index >= 0) continue;
      return absl::InvalidArgumentError(absl::StrCat(name_, ": ", DataKindName(kind), " data needs a column for ", role,
                                                     "; columns: ", ListNames(table_.columns),
                                                     "; name it in data.columns.", role, HeaderAdvice()));
    }
    return absl::OkStatus();
  }

  // What looks like a wrong header may be the first row.
  absl::string_view HeaderAdvice() const {
    if (format_ != DataFormat::kCsv && format_ != DataFormat::kTsv) return "";
    return ", by number (\"1\") if the file has no header line";
  }

  // Whether the labels are numbers of which some are no integers.
  static bool AreMeasures(const std::vector<Example>& examples) {
    bool has_fraction = false;
    for (const Example& example : examples) {
      double value = 0;
      if (!ParseNumber(example.label, &value)) return false;
      has_fraction = has_fraction || value != std::floor(value);
    }
    return has_fraction;
  }

  // The row's value, or null if it has none.
  static const json* Value(const Table::Row& row, int index) {
    if (index < 0 || index >= static_cast<int>(row.values.size()) || row.values[index].is_null()) return nullptr;
    return &row.values[index];
  }

  absl::StatusOr<std::string> Text(const Table::Row& row, int index) const {
    const json* value = Value(row, index);
    if (value == nullptr) return absl::InvalidArgumentError(absl::StrCat("no \"", table_.columns[index], "\""));
    if (value->is_string()) return value->get_ref<const std::string&>();
    if (value->is_number() || value->is_boolean()) return value->dump();
    return absl::InvalidArgumentError(
        absl::StrCat("\"", table_.columns[index], "\" is ", value->type_name(), ", not text"));
  }

  absl::StatusOr<std::string> TextOrEmpty(const Table::Row& row, int index) const {
    if (Value(row, index) == nullptr) return std::string();
    return Text(row, index);
  }

  absl::Status Fill(const Table::Row& row, DataKind kind, Example* example) const {
    switch (kind) {
      case DataKind::kClassification:
      case DataKind::kRegression: {
        QST_ASSIGN_OR_RETURN(example->text, Text(row, at_.text));
        if (at_.text_pair >= 0) {
          QST_ASSIGN_OR_RETURN(std::string pair, Text(row, at_.text_pair));
          example->text_pair = std::move(pair);
        }
        if (options_.needs_label) {
          QST_ASSIGN_OR_RETURN(example->label, Text(row, at_.label));
        } else {
          QST_ASSIGN_OR_RETURN(example->label, TextOrEmpty(row, at_.label));
        }
        double ignored = 0;
        if (kind == DataKind::kRegression && options_.needs_label && !ParseNumber(example->label, &ignored)) {
          return absl::InvalidArgumentError(absl::StrCat("\"", table_.columns[at_.label], "\" is \"",
                                                         example->label.substr(0, 80),
                                                         "\", not a number, which regression needs"));
        }
        return absl::OkStatus();
      }
      case DataKind::kInstruction: {
        QST_ASSIGN_OR_RETURN(example->instruction, Text(row, at_.instruction));
        QST_ASSIGN_OR_RETURN(example->input, TextOrEmpty(row, at_.input));
        QST_ASSIGN_OR_RETURN(example->output, Text(row, at_.output));
        return absl::OkStatus();
      }
      case DataKind::kCompletion: {
        QST_ASSIGN_OR_RETURN(example->instruction, Text(row, at_.prompt));
        QST_ASSIGN_OR_RETURN(example->output, Text(row, at_.completion));
        return absl::OkStatus();
      }
      case DataKind::kChat:
        return FillMessages(row, example);
      case DataKind::kText: {
        QST_ASSIGN_OR_RETURN(example->text, Text(row, at_.text));
        return absl::OkStatus();
      }
    }
    return absl::InternalError("unknown kind of data");
  }

  absl::Status FillMessages(const Table::Row& row, Example* example) const {
    const std::string& column = table_.columns[at_.messages];
    const json* list = Value(row, at_.messages);
    if (list == nullptr || !list->is_array() || list->empty()) {
      return absl::InvalidArgumentError(absl::StrCat("\"", column, "\" is not a list of messages"));
    }
    for (const json& entry : *list) {
      absl::StatusOr<ChatMessage> message = ParseChatMessage(entry);
      if (!message.ok()) {
        return Annotate(message.status(), absl::StrCat("\"", column, "\", message ", example->messages.size() + 1));
      }
      example->messages.push_back(*std::move(message));
    }
    return absl::OkStatus();
  }

  absl::string_view name_;
  const DataFormat format_;
  const Table& table_;
  const DatasetOptions& options_;
  ColumnIndices at_;
};

}  // namespace

absl::string_view DataFormatName(DataFormat format) {
  for (const auto& [known, name] : kFormatNames) {
    if (known == format) return name;
  }
  return "unknown";
}

absl::StatusOr<DataFormat> ParseDataFormat(absl::string_view name) {
  if (name.empty()) return DataFormat::kAuto;
  std::vector<absl::string_view> names;
  for (const auto& [format, known] : kFormatNames) {
    if (known == name) return format;
    names.push_back(known);
  }
  return absl::InvalidArgumentError(
      absl::StrCat("unknown data format \"", name, "\"; known: ", absl::StrJoin(names, ", ")));
}

absl::string_view DataKindName(DataKind kind) {
  switch (kind) {
    case DataKind::kClassification:
      return "classification";
    case DataKind::kInstruction:
      return "instruction";
    case DataKind::kCompletion:
      return "completion";
    case DataKind::kChat:
      return "chat";
    case DataKind::kText:
      return "text";
    case DataKind::kRegression:
      return "regression";
  }
  return "unknown";
}

absl::StatusOr<Dataset> ParseDataset(absl::string_view name, absl::string_view bytes, const DatasetOptions& options) {
  if (absl::StripAsciiWhitespace(SkipByteOrderMark(bytes)).empty()) {
    return absl::InvalidArgumentError(absl::StrCat(name, ": the file is empty"));
  }
  const DataFormat format = options.format == DataFormat::kAuto ? DetectFormat(name, bytes) : options.format;
  absl::StatusOr<Table> table = absl::InvalidArgumentError(
      absl::StrCat(name, ": cannot tell the format; set data.format to jsonl, json, tsv, csv or text"));
  switch (format) {
    case DataFormat::kJsonl:
      table = ParseJsonlTable(name, bytes);
      break;
    case DataFormat::kJson:
      table = ParseJsonTable(name, bytes);
      break;
    case DataFormat::kTsv:
    case DataFormat::kCsv:
      table = ParseFields(format, name, bytes, options.columns);
      break;
    case DataFormat::kText:
      table = ParseTextTable(name, bytes);
      break;
    case DataFormat::kAuto:
      break;
  }
  if (!table.ok()) return table.status();
  return DatasetBuilder(name, format, *table, options).Build();
}

absl::StatusOr<Dataset> ReadDataset(const std::string& path, const DatasetOptions& options) {
  struct stat info;
  if (stat(path.c_str(), &info) != 0) {
    const std::string message = absl::StrCat(path, ": ", std::strerror(errno));
    return errno == ENOENT ? absl::NotFoundError(message) : absl::InvalidArgumentError(message);
  }
  if (!S_ISREG(info.st_mode)) return absl::InvalidArgumentError(absl::StrCat(path, ": not a file"));
  std::ifstream stream(path, std::ios::binary);
  std::string bytes(static_cast<size_t>(info.st_size), '\0');
  if (!stream.read(bytes.data(), static_cast<std::streamsize>(bytes.size()))) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": cannot be read"));
  }
  const size_t slash = path.rfind('/');
  return ParseDataset(slash == std::string::npos ? path : path.substr(slash + 1), bytes, options);
}

absl::StatusOr<LabelSet> LabelSet::FromList(std::vector<std::string> labels) {
  if (labels.empty()) return absl::InvalidArgumentError("the list of labels is empty");
  absl::flat_hash_set<absl::string_view> seen;
  for (const std::string& label : labels) {
    if (!seen.insert(label).second) {
      return absl::InvalidArgumentError(absl::StrCat("the list of labels has \"", label, "\" twice"));
    }
  }
  LabelSet set;
  set.labels_ = std::move(labels);
  return set;
}

absl::StatusOr<LabelSet> LabelSet::Collect(const Dataset& dataset) {
  std::set<std::tuple<bool, double, std::string>> sorted;
  for (const Example& example : dataset.examples) {
    double value = 0;
    const bool is_number = absl::SimpleAtod(example.label, &value) && std::isfinite(value);
    sorted.emplace(!is_number, is_number ? value : 0, example.label);
  }
  std::vector<std::string> labels;
  for (const auto& [is_text, value, label] : sorted) labels.push_back(label);
  return FromList(std::move(labels));
}

std::optional<int32_t> LabelSet::Find(absl::string_view label) const {
  const auto it = std::find(labels_.begin(), labels_.end(), label);
  if (it == labels_.end()) return std::nullopt;
  return static_cast<int32_t>(it - labels_.begin());
}

absl::Status LabelSet::Check(const Dataset& dataset) const {
  const absl::flat_hash_set<absl::string_view> known(labels_.begin(), labels_.end());
  for (const Example& example : dataset.examples) {
    if (known.contains(example.label)) continue;
    return absl::InvalidArgumentError(absl::StrCat(dataset.name, " ", dataset.row_word, " ", example.line, ": label \"",
                                                   example.label, "\" is not one of: ", ListNames(labels_)));
  }
  return absl::OkStatus();
}

}  // namespace qst
