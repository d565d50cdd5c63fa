// Reads job files and --set assignments into a JobSpec, generically: keys are the fields of the message
// (proto/qst/v1/job_spec.proto), enum values their short names ("nf4", "causal_lm").
#ifndef QST_CLIENT_YAML_TO_SPEC_H_
#define QST_CLIENT_YAML_TO_SPEC_H_

#include <cstddef>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "proto/qst/v1/job_spec.pb.h"

namespace qst {

// A job file is some hundred bytes; anything near this is another file.
inline constexpr size_t kMaxJobFileBytes = size_t{1} << 20;
// Nesting of brackets and indentation; a job file has three levels.
inline constexpr int kMaxJobFileDepth = 32;
// Keys, values and list elements; more than any label set needs.
inline constexpr int kMaxJobFileValues = 100000;

// The job of a YAML text; `file_name` is for messages. Fields that it does not set stay unset.
// Errors are usage errors "job.yaml:7: train.lerning_rate: unknown key; did you mean 'learning_rate'?".
// Time and memory are linear in the text, whatever it holds.
absl::StatusOr<v1::JobSpec> YamlToSpec(absl::string_view text, absl::string_view file_name);

// Applies "train.learning_rate=1e-3"; lists are written a,b,c. Errors are usage errors that start with
// "--set train.learning_rate: "; *spec is unchanged then.
absl::Status ApplyAssignment(absl::string_view assignment, v1::JobSpec* spec);

}  // namespace qst

#endif  // QST_CLIENT_YAML_TO_SPEC_H_
