// Data files as they are uploaded: JSONL, JSON, TSV, CSV and plain text, with columns found by their usual names.
#ifndef QST_WORKER_TEXT_DATASET_H_
#define QST_WORKER_TEXT_DATASET_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace qst {

enum class DataFormat {
  kAuto,   // by the file's extension, else by its first character and line
  kJsonl,  // one object a line; blank lines are skipped
  kJson,   // an array of objects
  kTsv,    // header line, fields between tabs, no quoting: GLUE's form
  kCsv,    // RFC 4180 with a header line; line ends are LF or CR LF
  kText,   // an example a line, the column "text"; blank lines are skipped
};

// "auto", "jsonl", "json", "tsv", "csv", "text".
absl::string_view DataFormatName(DataFormat format);
// Errors  kInvalidArgument: another name; the known ones are listed.
absl::StatusOr<DataFormat> ParseDataFormat(absl::string_view name);

// Which column holds what. An empty name is looked up by usual names, in the order given here, compared
// without regard to case. In TSV and CSV, a number that is no column's name stands for that column, from 1, of a file
// without a header line.
struct DataColumns {
  std::string text;         // text, sentence1, question1, premise, question, sentence, #1 string, content
  std::string text_pair;    // text_pair, sentence2, question2, hypothesis, sentence, #2 string
  std::string label;        // label, gold_label, is_duplicate, quality, class, category, topic, target, score
  std::string instruction;  // instruction
  std::string input;        // input, context
  std::string output;       // output, response
  std::string prompt;       // prompt
  std::string completion;   // completion, response
  // messages, conversations. Of each message: role and content (OpenAI), or from and value (ShareGPT). Content may be a
  // list of parts, of which the texts count; calls of tools that come without content are its text, as JSON.
  std::string messages;
};

enum class DataKind {
  kClassification,  // text, text_pair, label
  kInstruction,     // instruction, input, output
  kCompletion,      // prompt, completion
  kChat,            // messages
  kText,            // text
  kRegression,      // as kClassification, with numbers for labels
};

absl::string_view DataKindName(DataKind kind);

struct ChatMessage {
  // "system", "user", "assistant", "tool" (what a function gave), "function_call" (said by the assistant), or as the
  // file has it.
  std::string role;
  std::string content;
};

// One row; which fields are set depends on the kind. All text is valid UTF-8.
struct Example {
  int64_t line = 0;  // where its row begins, from 1; in a JSON array, the element's number from 1
  std::string text;
  std::optional<std::string> text_pair;
  std::string label;
  std::string instruction;  // of kCompletion: the prompt
  std::string input;        // empty if there is none
  std::string output;       // of kCompletion: the completion
  std::vector<ChatMessage> messages;
};

struct Dataset {
  std::string name;                        // for messages: the file's name
  std::string row_word;                    // for messages: "line", or "element" of a JSON array
  DataFormat format = DataFormat::kJsonl;  // never kAuto
  DataKind kind = DataKind::kText;
  std::vector<std::string> columns;
  std::vector<Example> examples;  // never empty
};

struct DatasetOptions {
  DataFormat format = DataFormat::kAuto;
  // Without it, the kind follows from the columns: messages, instruction, prompt, text with label, text; labels that
  // are all numbers and not all integers are those of a regression.
  std::optional<DataKind> kind;
  DataColumns columns;
  // Rows for prediction need no label.
  bool needs_label = true;
};

// Errors, all kInvalidArgument, "NAME line N: ...": a row that does not parse, a row without a needed
// column, a field of the wrong type, a label that is no number (kRegression), invalid UTF-8; a needed column that no
// row has (the message lists the columns that are there); no rows. kNotFound: ReadDataset has no such file.
absl::StatusOr<Dataset> ParseDataset(absl::string_view name, absl::string_view bytes, const DatasetOptions& options);
absl::StatusOr<Dataset> ReadDataset(const std::string& path, const DatasetOptions& options);

// The classes of a classification job, in the order of their ids.
class LabelSet {
 public:
  // Errors  kInvalidArgument: empty, or a label twice.
  static absl::StatusOr<LabelSet> FromList(std::vector<std::string> labels);
  // The labels that occur, numbers in the order of their values before other text in byte order.
  static absl::StatusOr<LabelSet> Collect(const Dataset& dataset);

  const std::vector<std::string>& labels() const { return labels_; }
  std::optional<int32_t> Find(absl::string_view label) const;
  // Errors  kInvalidArgument: a row has a label outside the set; names the row, the label and the set.
  absl::Status Check(const Dataset& dataset) const;

 private:
  std::vector<std::string> labels_;
};

}  // namespace qst

#endif  // QST_WORKER_TEXT_DATASET_H_
