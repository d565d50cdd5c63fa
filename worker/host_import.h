// A model import on this worker.
#ifndef QST_WORKER_HOST_IMPORT_H_
#define QST_WORKER_HOST_IMPORT_H_

#include <atomic>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "proto/qst/v1/control.pb.h"
#include "worker/worker_reports.h"

namespace qst {

// Runs on a thread of its own from construction on; reports progress, then READY with the model's dimensions, or
// FAILED. The destructor cancels and waits.
class ModelImport {
 public:
  ModelImport(const v1::ImportCommand& command, int num_threads, WorkerReports* reports);
  ~ModelImport();

  const std::string& name() const { return command_.name(); }
  // Ends it soon; it then reports FAILED, "cancelled".
  void Cancel() { is_cancelled_ = true; }
  bool is_over() const { return is_over_; }

 private:
  void Run();
  absl::Status Execute(v1::Model* model);
  void Report(const v1::Model& model);

  const v1::ImportCommand command_;
  const int num_threads_;
  WorkerReports* const reports_;
  std::atomic<bool> is_cancelled_{false};
  std::atomic<bool> is_over_{false};
  std::thread thread_;
};

}  // namespace qst

#endif  // QST_WORKER_HOST_IMPORT_H_
