// The worker process without its command line: session with the coordinator, and what it hosts.
#ifndef QST_WORKER_WORKER_H_
#define QST_WORKER_WORKER_H_

#include <memory>

#include "absl/status/status.h"
#include "worker/compute_device.h"
#include "worker/worker_options.h"

namespace qst {

class Worker {
 public:
  // `device` as options.compute says.
  Worker(const WorkerOptions& options, std::unique_ptr<ComputeDevice> device);
  ~Worker();

  // Blocks until Stop, or until the coordinator says Shutdown (OK). Errors as WorkerSession::Run.
  absl::Status Run();

  // Ends Run, from any thread: what is hosted is dropped.
  void Stop();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace qst

#endif  // QST_WORKER_WORKER_H_
