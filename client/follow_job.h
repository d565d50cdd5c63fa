// Follows a job on the screen until its end: what `qst watch` and `qst submit --watch` share.
#ifndef QST_CLIENT_FOLLOW_JOB_H_
#define QST_CLIENT_FOLLOW_JOB_H_

#include <string>

#include "absl/status/status.h"
#include "client/command.h"

namespace qst {

// "reconnect-for", which FollowJob reads.
FlagSpec ReconnectFlag();

// OK if the job SUCCEEDED; else an error that says how it ended. Ctrl-C stops the watching, not the job: kCancelled.
// With --json, the last line is {"job": ...} as it is then.
absl::Status FollowJob(CommandContext& context, const std::string& job_id);

}  // namespace qst

#endif  // QST_CLIENT_FOLLOW_JOB_H_
