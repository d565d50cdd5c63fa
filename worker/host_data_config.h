// A job's data settings in terms of the readers and templates of worker/text.
#ifndef QST_WORKER_HOST_DATA_CONFIG_H_
#define QST_WORKER_HOST_DATA_CONFIG_H_

#include <string>

#include "absl/status/statusor.h"
#include "proto/qst/v1/job_spec.pb.h"
#include "worker/text/dataset.h"
#include "worker/text/prompt_format.h"
#include "worker/text/tokenizer.h"

namespace qst {

// Reads a file as a job of this type does: for language modelling, labelled texts are plain ones. Without a type, as
// the file looks. Errors   of ReadDataset.
absl::StatusOr<Dataset> ReadDatasetFor(v1::TaskType task, const v1::DataConfig& data, const std::string& path);

// The template of such data.
// Errors   of ChoosePromptFormat, beginning with "data.template".
absl::StatusOr<PromptFormat> PromptFormatFor(const v1::DataConfig& data, const Tokenizer& tokenizer, DataKind kind);

}  // namespace qst

#endif  // QST_WORKER_HOST_DATA_CONFIG_H_
