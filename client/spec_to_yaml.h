// Writes a JobSpec as a job file that yaml_to_spec reads back to the same message.
#ifndef QST_CLIENT_SPEC_TO_YAML_H_
#define QST_CLIENT_SPEC_TO_YAML_H_

#include <string>

#include "proto/qst/v1/job_spec.pb.h"

namespace qst {

// The set fields only, in the order of the message. Lines are indented by `indent` spaces.
std::string SpecToYaml(const v1::JobSpec& spec, int indent = 0);

}  // namespace qst

#endif  // QST_CLIENT_SPEC_TO_YAML_H_
