#include "worker/text/dataset_builder.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "nlohmann/json.hpp"
#include "proto/support/status_macros.h"
#include "worker/text/chat_message.h"
#include "worker/text/json_util.h"

namespace qst {
namespace {

using nlohmann::json;

bool ParseNumber(absl::string_view text, double* value) {
  return absl::SimpleAtod(text, value) && std::fabs(*value) <= std::numeric_limits<float>::max();
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
    for (const auto& [column, value] : row.values) {
      if (static_cast<int>(column) == index) return value.is_null() ? nullptr : &value;
    }
    return nullptr;
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

absl::StatusOr<Dataset> BuildDataset(absl::string_view name, DataFormat format, const Table& table,
                                     const DatasetOptions& options) {
  return DatasetBuilder(name, format, table, options).Build();
}

// Names listed in a message.
constexpr size_t kMaxListed = 20;

std::string ListNames(const std::vector<std::string>& names) {
  std::vector<std::string> shown(names.begin(), names.begin() + std::min(names.size(), kMaxListed));
  if (shown.size() < names.size()) shown.push_back(absl::StrCat("and ", names.size() - shown.size(), " more"));
  return absl::StrJoin(shown, ", ");
}

}  // namespace qst
