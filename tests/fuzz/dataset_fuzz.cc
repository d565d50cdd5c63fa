// An uploaded data file in each format, with the usual columns and with numbered ones: what is read must hold together,
// and its text must be UTF-8.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>

#include "absl/strings/numbers.h"
#include "absl/strings/string_view.h"
#include "worker/text/dataset.h"
#include "worker/text/prompt_template.h"
#include "worker/text/utf8.h"

namespace {

void CheckPrompts(const qst::Dataset& dataset) {
  for (const qst::Example& example : dataset.examples) {
    for (const auto name : {qst::PromptTemplate::kAlpaca, qst::PromptTemplate::kChatml, qst::PromptTemplate::kLlama2,
                            qst::PromptTemplate::kLlama3, qst::PromptTemplate::kMistral, qst::PromptTemplate::kVicuna,
                            qst::PromptTemplate::kGuanaco, qst::PromptTemplate::kZephyr, qst::PromptTemplate::kPlain,
                            qst::PromptTemplate::kCustom}) {
      const qst::PromptFormat format = qst::MakePromptFormat(name);
      for (const qst::PromptSegment& segment : qst::RenderExample(format, dataset.kind, example)) {
        if (!qst::IsValidUtf8(segment.text)) std::abort();
      }
    }
  }
}

void Check(absl::string_view bytes, const qst::DatasetOptions& options) {
  const auto dataset = qst::ParseDataset("fuzz", bytes, options);
  if (!dataset.ok()) {
    if (dataset.status().message().empty()) std::abort();
    return;
  }
  if (dataset->examples.empty()) std::abort();
  for (const qst::Example& example : dataset->examples) {
    if (!qst::IsValidUtf8(example.text) || !qst::IsValidUtf8(example.label)) std::abort();
    double value = 0;
    if (dataset->kind == qst::DataKind::kRegression && options.needs_label &&
        !(absl::SimpleAtod(example.label, &value) && std::isfinite(value))) {
      std::abort();
    }
  }
  if (dataset->kind == qst::DataKind::kClassification) {
    const auto labels = qst::LabelSet::Collect(*dataset);
    if (!labels.ok() || !labels->Check(*dataset).ok()) std::abort();
  } else if (dataset->kind != qst::DataKind::kRegression) {
    CheckPrompts(*dataset);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const absl::string_view bytes(reinterpret_cast<const char*>(data), size);
  qst::DatasetOptions options;
  for (const qst::DataFormat format : {qst::DataFormat::kAuto, qst::DataFormat::kJsonl, qst::DataFormat::kJson,
                                       qst::DataFormat::kTsv, qst::DataFormat::kCsv, qst::DataFormat::kText}) {
    options.format = format;
    Check(bytes, options);
  }
  // Without a header line; rows for prediction, then measures.
  options.columns.text = "1";
  options.columns.label = "2";
  for (const qst::DataFormat format : {qst::DataFormat::kTsv, qst::DataFormat::kCsv}) {
    options.format = format;
    options.kind.reset();
    options.needs_label = false;
    Check(bytes, options);
    options.kind = qst::DataKind::kRegression;
    options.needs_label = true;
    Check(bytes, options);
  }
  return 0;
}
