// A job's spec as the YAML job file that would make it.
#ifndef QST_WORKER_HOST_JOB_YAML_H_
#define QST_WORKER_HOST_JOB_YAML_H_

#include <string>

#include "proto/qst/v1/job_spec.pb.h"

namespace qst {

// Fields in the order of job_spec.proto; enum values in lower case without their type prefix; what is not set is left
// out.
std::string JobSpecToYaml(const v1::JobSpec& spec);

}  // namespace qst

#endif  // QST_WORKER_HOST_JOB_YAML_H_
