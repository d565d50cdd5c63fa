// What the short tasks do: tokenise a text, describe a data set, export a model.
#ifndef QST_WORKER_HOST_TASK_RUNNER_H_
#define QST_WORKER_HOST_TASK_RUNNER_H_

#include "worker/host_task.h"

namespace qst {

// Errors of the tasks: those of the readers and writers they use. kResourceExhausted: the answer would not fit into one
// message.
TaskRunner MakeTaskRunner();

}  // namespace qst

#endif  // QST_WORKER_HOST_TASK_RUNNER_H_
