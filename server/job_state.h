// The states of a job and the ways between them.
//
//                                        +------------------ evaluation ends ----------+
//            placed                      v                                             |
//   QUEUED ----------> PREPARING ----> RUNNING ---------- evaluation begins ------> EVALUATING
//                          |             |                                             ^ |
//                          |             +---- done ---> SUCCEEDED <----- done --------|-+
//                          +---------------- evaluation before the first step ---------+
//
//   PREPARING, RUNNING, EVALUATING  -> QUEUED      the coordinator restarted and the job's workers did not all come
//   back QUEUED and the three            -> CANCELLED   on request QUEUED and the three            -> FAILED      an
//   error, a lost worker, or (QUEUED) what it needs is gone
//
// SUCCEEDED, CANCELLED and FAILED are final.
#ifndef QST_SERVER_JOB_STATE_H_
#define QST_SERVER_JOB_STATE_H_

#include "absl/strings/string_view.h"
#include "proto/qst/v1/resources.pb.h"

namespace qst {

// Whether a job may go from `from` to `to` in one step. Staying is not a step.
bool IsJobTransitionAllowed(v1::JobState from, v1::JobState to);

// SUCCEEDED, FAILED, CANCELLED: nothing follows.
bool IsFinalJobState(v1::JobState state);

// PREPARING, RUNNING, EVALUATING: the job holds workers.
bool IsPlacedJobState(v1::JobState state);

// "QUEUED", "RUNNING", ...
absl::string_view JobStateName(v1::JobState state);

}  // namespace qst

#endif  // QST_SERVER_JOB_STATE_H_
