// Where stages go whose workers were lost, while everything else of the placement stays. Pure functions.
#ifndef QST_SERVER_STAGE_REPLACEMENT_H_
#define QST_SERVER_STAGE_REPLACEMENT_H_

#include <set>
#include <string>
#include <vector>

#include "proto/qst/v1/resources.pb.h"
#include "server/placement.h"

namespace qst {

struct ReplacementRequest {
  // As it is, with memory as computed for it.
  v1::Placement placement;
  // Workers of it that host nothing of it any more. Not the side network's: with that, the job begins anew from its
  // checkpoint.
  std::set<std::string> gone;
  // Whether a stage may join another part of the placement on its worker, which makes the pipeline slower.
  bool may_share = false;
};

// Stages of gone workers go to idle workers of the same kind that have the memory, those of one worker together where
// they fit; with may_share else to a worker of the placement, a neighbour in the pipeline if possible. The layers of
// each stage stay. The new placement counts one more revision.
// Not placed: the message says what it waits for, "waiting for a cpu worker with 1.2 GB for stage 0".
PlacementDecision ReplaceStages(const ReplacementRequest& request, const std::vector<WorkerOffer>& workers);

}  // namespace qst

#endif  // QST_SERVER_STAGE_REPLACEMENT_H_
