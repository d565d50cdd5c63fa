// A coordinator that keeps everything in memory and runs nothing: tests say what happens to jobs. Speaks real gRPC
// on a loopback port, and can go away and come back.
#ifndef QST_CLIENT_TESTING_FAKE_COORDINATOR_H_
#define QST_CLIENT_TESTING_FAKE_COORDINATOR_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "proto/qst/v1/coordinator.pb.h"

namespace qst {

// Thread-safe.
class FakeCoordinator {
 public:
  FakeCoordinator();
  // Stops.
  ~FakeCoordinator();

  // Serves at `listen`; port 0 = any. False if the port is taken.
  bool Start(const std::string& listen = "127.0.0.1:0");
  // Ends all calls, as a crash does.
  void Stop();
  // Of the last Start.
  std::string address() const;

  // Stores a job; its id is chosen if empty. Returns it.
  v1::Job AddJob(v1::Job job) ABSL_LOCKS_EXCLUDED(mutex_);
  // Appends an event (its sequence is filled in) and updates the job's state and progress.
  void AddEvent(const std::string& job_id, v1::JobEvent event) ABSL_LOCKS_EXCLUDED(mutex_);
  void AddState(const std::string& job_id, v1::JobState state, const std::string& message = "");
  void AddProgress(const std::string& job_id, uint64_t step, uint64_t total);
  // Blocks until a watcher was sent event `sequence`.
  void AwaitSent(const std::string& job_id, uint64_t sequence) ABSL_LOCKS_EXCLUDED(mutex_);

  // What the next calls do; set before they come.
  struct Script {
    // So many SubmitJob calls are carried out but answered with UNAVAILABLE.
    int lost_submit_answers = 0;
    // Run when a job has been submitted.
    std::function<void(const v1::Job&)> on_submit;
    // ListJobs never answers.
    bool jobs_hang = false;
    // Answers of every call with this, unless OK.
    absl::Status refuse;
    std::vector<v1::DownloadResultsResponse> results;
    std::vector<v1::GenerateResponse> generated;
    // Sent by WatchModel one after the other.
    std::vector<v1::Model> model_changes;
    v1::TokenizeResponse tokens;
    v1::DescribeDatasetResponse description;
    // Instead of the description, unless OK.
    absl::Status describe_error;
    std::vector<v1::ExportModelResponse> export_progress;
  };
  void SetScript(Script script) ABSL_LOCKS_EXCLUDED(mutex_);
  // Gives the workers for ListWorkers.
  void SetWorkers(std::function<std::vector<v1::Worker>()> workers) ABSL_LOCKS_EXCLUDED(mutex_);

  // What was asked for.
  std::vector<v1::SubmitJobRequest> submits() const ABSL_LOCKS_EXCLUDED(mutex_);
  std::vector<v1::ImportModelRequest> imports() const ABSL_LOCKS_EXCLUDED(mutex_);
  std::vector<v1::GenerateRequest> generates() const ABSL_LOCKS_EXCLUDED(mutex_);
  std::vector<v1::TokenizeRequest> tokenizes() const ABSL_LOCKS_EXCLUDED(mutex_);
  std::vector<v1::DescribeDatasetRequest> describes() const ABSL_LOCKS_EXCLUDED(mutex_);
  std::vector<v1::ExportModelRequest> exports() const ABSL_LOCKS_EXCLUDED(mutex_);
  // Content by id, and how often a content was sent.
  std::map<std::string, std::string> dataset_contents() const ABSL_LOCKS_EXCLUDED(mutex_);
  int num_uploads() const ABSL_LOCKS_EXCLUDED(mutex_);
  size_t num_jobs() const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  class Service;
  v1::Job* FindJob(const std::string& id) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  mutable absl::Mutex mutex_;
  Script script_ ABSL_GUARDED_BY(mutex_);
  std::function<std::vector<v1::Worker>()> workers_ ABSL_GUARDED_BY(mutex_);
  // Newest last.
  std::vector<v1::Job> jobs_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, std::vector<v1::JobEvent>> events_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, uint64_t> sent_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, std::string> job_of_request_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, v1::Dataset> datasets_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, std::string> contents_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, v1::Model> models_ ABSL_GUARDED_BY(mutex_);
  std::vector<v1::SubmitJobRequest> submits_ ABSL_GUARDED_BY(mutex_);
  std::vector<v1::ImportModelRequest> imports_ ABSL_GUARDED_BY(mutex_);
  std::vector<v1::GenerateRequest> generates_ ABSL_GUARDED_BY(mutex_);
  std::vector<v1::TokenizeRequest> tokenizes_ ABSL_GUARDED_BY(mutex_);
  std::vector<v1::DescribeDatasetRequest> describes_ ABSL_GUARDED_BY(mutex_);
  std::vector<v1::ExportModelRequest> exports_ ABSL_GUARDED_BY(mutex_);
  int num_uploads_ ABSL_GUARDED_BY(mutex_) = 0;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;

  struct Server;
  std::unique_ptr<Server> server_;
  std::string address_;
};

}  // namespace qst

#endif  // QST_CLIENT_TESTING_FAKE_COORDINATOR_H_
