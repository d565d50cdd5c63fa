// One part of a placement on this worker, and what it needs from the process around it.
#ifndef QST_WORKER_HOST_PART_H_
#define QST_WORKER_HOST_PART_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "kernels/device.h"
#include "kernels/dtype.h"
#include "proto/qst/v1/control.pb.h"
#include "worker/compute_device.h"
#include "worker/stream/inproc_transport.h"
#include "worker/stream/key_value_store.h"
#include "worker/worker_reports.h"

namespace qst {

// What the process may use, by calculation: what it used before it hosted anything, what running code takes besides
// (pages of libraries, stacks, connections), and what each part asked for. Thread-safe.
class MemoryBudget {
 public:
  explicit MemoryBudget(std::int64_t base_bytes) : base_bytes_(base_bytes) {}

  // A plan begins on a worker that hosts nothing.
  void SetBase(std::int64_t base_bytes) {
    absl::MutexLock lock(&mutex_);
    base_bytes_ = base_bytes;
  }
  void Set(const std::string& part, std::int64_t bytes) {
    absl::MutexLock lock(&mutex_);
    parts_[part] = bytes;
  }
  void Remove(const std::string& part) {
    absl::MutexLock lock(&mutex_);
    parts_.erase(part);
  }
  std::int64_t total_bytes() const {
    absl::MutexLock lock(&mutex_);
    std::int64_t total = base_bytes_ + (parts_.empty() ? 0 : kRunningCodeBytes);
    for (const auto& [part, bytes] : parts_) total += bytes;
    return total;
  }

 private:
  static constexpr std::int64_t kRunningCodeBytes = 4 << 20;

  mutable absl::Mutex mutex_;
  std::int64_t base_bytes_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, std::int64_t> parts_ ABSL_GUARDED_BY(mutex_);
};

// Where the data plane of this worker listens.
struct DataAddress {
  std::string interface;  // if not empty, it decides
  std::string host = "127.0.0.1";
};

struct PartContext {
  std::string worker_id;
  ComputeDevice* device = nullptr;
  // The part's own, made by the host when the part begins.
  OpContext ops;
  DataAddress data_address;
  // Rendezvous of a plan's peers.
  std::function<std::unique_ptr<KeyValueStore>(const std::string& plan_id)> make_store;
  WorkerReports* reports = nullptr;
  MemoryBudget* memory = nullptr;
  // Where the parts of this plan on this worker meet.
  std::shared_ptr<InprocHub> hub;
};

// Run is called once, on a thread of the part's own that is bound to the device; Abort and Cancel from any thread, at
// any time.
class Part {
 public:
  virtual ~Part() = default;
  virtual void Run() = 0;
  // Ends Run as soon as can be; it reports nothing any more.
  virtual void Abort(const absl::Status& reason) = 0;
  // Asks for an orderly end.
  virtual void Cancel() {}
  // Of a side network: its stages were placed again, as this plan says, and meet in this hub. Others have no stages.
  virtual void Attach(const v1::JobPlan& /*plan*/, std::shared_ptr<InprocHub> /*hub*/) {}
};

// "stage 0", "side network".
std::string PartName(const v1::HostedPart& part);
// The same with its worker: what peers call it.
std::string RankName(const v1::JobPlan& plan, int rank);
int RankOf(const v1::JobPlan& plan, const v1::HostPart& command);
v1::HostedPart HostedPartOf(const v1::HostPart& command);
// What the ranks are called in messages.
std::vector<std::string> RankNames(const v1::JobPlan& plan);
// Most tokens of one backbone pass, as both ends of the data plane compute it.
std::int64_t MaxPassTokens(const v1::JobPlan& plan);
DType WireDtypeOf(const v1::JobPlan& plan);
// Of stages on GPUs.
DType ComputeDtypeOf(const v1::JobPlan& plan);
// "memory: peak 812.3 MB of budget 900.0 MB", of the process; on a GPU its memory comes first:
// "memory: peak 12.3 GB of budget 70.0 GB on cuda:0; host: peak ...".
std::string DescribeMemory(const PartContext& context);
// kInvalidArgument: a plan that no correct coordinator sends; says what is wrong.
absl::Status CheckPlan(const v1::JobPlan& plan);
// The same of the command as a whole.
absl::Status CheckPart(const v1::HostPart& command);

}  // namespace qst

#endif  // QST_WORKER_HOST_PART_H_
