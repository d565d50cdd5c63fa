// A backbone stage as a part of a placement.
#ifndef QST_WORKER_HOST_STAGE_PART_H_
#define QST_WORKER_HOST_STAGE_PART_H_

#include <memory>

#include "proto/qst/v1/control.pb.h"
#include "worker/host_part.h"

namespace qst {

// Opens the model, connects to its peers and runs passes until the side network has seen all it needs.
// Reports LOADING, READY, then RELEASED, or FAILED if the failure is its own or a lost connection; a failure that a
// peer reported about itself is the peer's to tell.
std::unique_ptr<Part> MakeStagePart(const v1::HostPart& command, const PartContext& context);

}  // namespace qst

#endif  // QST_WORKER_HOST_STAGE_PART_H_
