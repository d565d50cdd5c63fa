// The side network of a training job as a part of a placement.
#ifndef QST_WORKER_HOST_TRAIN_PART_H_
#define QST_WORKER_HOST_TRAIN_PART_H_

#include <memory>

#include "proto/qst/v1/control.pb.h"
#include "worker/host_part.h"

namespace qst {

// Reads and tokenises the data, connects to the stages, trains, and leaves the results in the job's folder. All that
// happens goes into job reports; the last one is SUCCEEDED, FAILED or CANCELLED. The part itself never reports FAILED.
std::unique_ptr<Part> MakeTrainPart(const v1::HostPart& command, const PartContext& context);

}  // namespace qst

#endif  // QST_WORKER_HOST_TRAIN_PART_H_
