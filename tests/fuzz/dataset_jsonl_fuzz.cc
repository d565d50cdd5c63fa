// An uploaded data file in each format: what is read must hold together, and its text must be UTF-8.
#include <cstddef>
#include <cstdint>
#include <cstdlib>

#include "absl/strings/string_view.h"
#include "worker/text/dataset.h"
#include "worker/text/prompt_template.h"
#include "worker/text/utf8.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const absl::string_view bytes(reinterpret_cast<const char*>(data), size);
  for (const qst::DataFormat format : {qst::DataFormat::kAuto, qst::DataFormat::kJsonl, qst::DataFormat::kJson,
                                       qst::DataFormat::kTsv, qst::DataFormat::kCsv, qst::DataFormat::kText}) {
    qst::DatasetOptions options;
    options.format = format;
    const auto dataset = qst::ParseDataset("fuzz", bytes, options);
    if (!dataset.ok()) continue;
    if (dataset->examples.empty()) std::abort();
    if (dataset->kind == qst::DataKind::kClassification) {
      const auto labels = qst::LabelSet::Collect(*dataset);
      if (!labels.ok() || !labels->Check(*dataset).ok()) std::abort();
      continue;
    }
    for (const qst::Example& example : dataset->examples) {
      for (const auto name : {qst::PromptTemplate::kAlpaca, qst::PromptTemplate::kChatml, qst::PromptTemplate::kLlama2,
                              qst::PromptTemplate::kLlama3, qst::PromptTemplate::kMistral, qst::PromptTemplate::kVicuna,
                              qst::PromptTemplate::kGuanaco, qst::PromptTemplate::kZephyr, qst::PromptTemplate::kPlain,
                              qst::PromptTemplate::kCustom}) {
        const qst::PromptFormat format = qst::MakePromptFormat(name);
        for (const qst::PromptSegment& segment : qst::RenderExample(format, dataset->kind, example)) {
          if (!qst::IsValidUtf8(segment.text)) std::abort();
        }
      }
    }
  }
  return 0;
}
