// The states of a job and the ways between them.
//
//              place                  side network reports
//   QUEUED ───────────▶ PREPARING ──────────────▶ RUNNING ◀────▶ EVALUATING
//     ▲  │                │  │  └────────────────────┼───────────────▲ │
//     │  │                │  │ (evaluation first)    │               │ │
//     │  │ cancel         │  └───────────┐           │ done          │ │ done
//     │  ▼                ▼ cancel       ▼ error     ▼               │ ▼
//     │ CANCELLED ◀──── (any of the three) ────▶ FAILED        SUCCEEDED
//     │                                             ▲
//     │  QUEUED also FAILS when its model is gone ──┘
//     └── PREPARING, RUNNING and EVALUATING return to QUEUED when the coordinator restarted and their workers did
//         not all come back.
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
