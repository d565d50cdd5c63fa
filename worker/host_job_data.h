// From a job's data files to what the trainer takes: examples as tokens, and the label set.
#ifndef QST_WORKER_HOST_JOB_DATA_H_
#define QST_WORKER_HOST_JOB_DATA_H_

#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "proto/qst/v1/control.pb.h"
#include "worker/text/encoded_dataset.h"
#include "worker/train/example_set.h"

namespace qst {

struct JobData {
  std::vector<std::string> labels;  // classification: in class order
  ExampleSet train;
  ExampleSet eval;  // empty without an evaluation file
};

// Reads, checks and tokenises the files of `work` with the tokenizer in `model_folder`. `say` gets a line for each set:
// rows, tokens, what was cut or left out, examples per label.
// Errors   of the readers, kInvalidArgument mostly: file, line and what is wrong.
absl::StatusOr<JobData> LoadJobData(const v1::TrainWork& work, const std::string& model_folder,
                                    const std::function<void(const std::string& line)>& say);

// "training set: 400 rows, 9120 tokens (median 21, 95 % at most 44, longest 60); ..."
std::string DescribeEncoding(const std::string& what, const EncodingStats& stats, std::int64_t max_length,
                             std::int64_t rows_in_file);

}  // namespace qst

#endif  // QST_WORKER_HOST_JOB_DATA_H_
