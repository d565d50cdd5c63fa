// Text of a job's progress: pure functions, so that every line can be tested.
#ifndef QST_CLIENT_PROGRESS_VIEW_H_
#define QST_CLIENT_PROGRESS_VIEW_H_

#include <string>

#include "absl/strings/string_view.h"
#include "proto/qst/v1/resources.pb.h"

namespace qst {

// "RUNNING" for JOB_STATE_RUNNING.
std::string StateName(v1::JobState state);
std::string StateName(v1::ModelState state);
std::string StateName(v1::WorkerState state);

bool IsFinal(v1::JobState state);

// "[=====>    ]" of `width` characters with the share done, 0 ... 1.
std::string ProgressBar(double share, int width);

// What is shown of a running job.
struct JobView {
  v1::JobState state = v1::JOB_STATE_UNSPECIFIED;
  std::string status_message;
  v1::JobProgress progress;
};

// One refreshed line of at most `width` characters:
// "RUNNING [====>     ] 40%  epoch 1.2  step 60/150  loss 2.341  812 tok/s  ETA 1:05".
// The bar gives way first, then the end of the line. Before the first step: state and what it waits for.
std::string TerminalLine(const JobView& view, int width);

// The same for a log file: "step 60/150 (40%)  epoch 1.2  loss 2.341  812 tok/s  ETA 1:05".
std::string PlainLine(const JobView& view);

// "evaluation at step 150: accuracy 0.9142, loss 0.3021" of a line of metrics.jsonl; "" if it is none of an evaluation.
std::string EvaluationLine(absl::string_view metrics_json);

// "importing [====>   ] 40%  120.0 MiB / 300.0 MiB  layer 12".
std::string ModelLine(const v1::Model& model, int width);

}  // namespace qst

#endif  // QST_CLIENT_PROGRESS_VIEW_H_
