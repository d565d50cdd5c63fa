// What a job spec means where it says nothing, and what it must not say. Pure functions; the defaults are those that
// proto/qst/v1/job_spec.proto states beside each field.
#ifndef QST_SERVER_JOB_SPEC_DEFAULTS_H_
#define QST_SERVER_JOB_SPEC_DEFAULTS_H_

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "proto/qst/v1/job_spec.pb.h"
#include "proto/qst/v1/resources.pb.h"

namespace qst {

// Fills every unset field but quantization, which comes from the model (MatchModel).
void FillJobSpecDefaults(v1::JobSpec* spec);

// Checks a filled spec. kInvalidArgument lists every violation as "train.batch_size: must be at least 1, is 0", joined
// by "; ".
absl::Status ValidateJobSpec(const v1::JobSpec& spec);

// Fills the unset fields of `data` that say how a file is read and rendered, and checks them: what describing a data
// set needs. kInvalidArgument as above.
absl::Status FillDataDefaults(v1::DataConfig* data);

// Checks what depends on the model (quantization as expected, stages within its layers) and fills spec->quantization
// from it. kInvalidArgument as above.
absl::Status MatchModel(const v1::Model& model, v1::JobSpec* spec);

// Fills the unset fields of what an import shall make; kInvalidArgument if they are out of range.
absl::Status ResolveQuantization(v1::Quantization* quantization);

// kInvalidArgument if stages and workers contradict each other.
absl::Status ValidateResources(const v1::ResourceConfig& resources, absl::string_view path);

// Names of jobs, models and data sets: [A-Za-z0-9._-]{1,64}, but not "." or "..". kInvalidArgument names `field`.
absl::Status ValidateName(absl::string_view name, absl::string_view field);

}  // namespace qst

#endif  // QST_SERVER_JOB_SPEC_DEFAULTS_H_
