// What the parts of this process compute with: one pool of threads that they share, or one GPU on which each of them
// has a stream of its own.
#ifndef QST_WORKER_COMPUTE_DEVICE_H_
#define QST_WORKER_COMPUTE_DEVICE_H_

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "kernels/cuda/device.h"
#include "kernels/device.h"

namespace qst {

// Of a GPU's memory, what the ops of one context keep for themselves: panels of unpacked weights, workspace.
inline constexpr std::int64_t kContextBytes = 256 << 20;

struct ComputeDeviceOptions {
  // Number of the GPU; none: CPU.
  std::optional<int> gpu;
  // Of the GPU's memory; 0: nine tenths of what is free.
  std::int64_t gpu_memory_bytes = 0;
  int num_threads = 1;
  CpuIsa isa = CpuIsa::kAuto;  // resolved
};

// What one part's ops run in; gone before the device is. On a GPU the destructor waits for all that was enqueued.
class ComputeContext {
 public:
  const OpContext& ops() const { return ops_; }
  // Once on every thread that uses ops().
  absl::Status BindThread() const;

 private:
  friend class ComputeDevice;
  ComputeContext(const OpContext& ops, cuda::StreamPtr stream) : ops_(ops), stream_(std::move(stream)) {}

  OpContext ops_;
  cuda::StreamPtr stream_;  // null on CPU
};

// Thread-safe. Outlives its contexts and all memory that was allocated in them.
class ComputeDevice {
 public:
  // kUnimplemented, kFailedPrecondition, kResourceExhausted: of cuda::Device::Open.
  static absl::StatusOr<std::unique_ptr<ComputeDevice>> Open(const ComputeDeviceOptions& options);
  ~ComputeDevice();
  ComputeDevice(const ComputeDevice&) = delete;
  ComputeDevice& operator=(const ComputeDevice&) = delete;

  bool is_cuda() const { return gpu_ != nullptr; }
  // "cpu" or "cuda:0".
  const std::string& id() const { return id_; }
  // "NVIDIA H100 80GB HBM3 (cuda:0, sm_90)"; empty on CPU.
  std::string gpu_name() const { return is_cuda() ? gpu_->name() : ""; }
  // What parts may allocate; 0 on CPU.
  std::int64_t gpu_memory_bytes() const { return is_cuda() ? gpu_->memory_budget_bytes() : 0; }
  int num_threads() const { return options_.num_threads; }

  // allow_tf32: of cuda::StreamOptions; nothing to a CPU.
  absl::StatusOr<std::unique_ptr<ComputeContext>> NewContext(bool allow_tf32 = false);

  // Sets aside memory of the GPU for a part, in place of what it had before, so that parts which begin together do not
  // each count on the same bytes. `what` says what the bytes are for: "weights 3.6 GB, activations 1.2 GB". Nothing on
  // CPU. kResourceExhausted: the budget does not hold it and what other parts have; the part has then nothing.
  absl::Status Reserve(const std::string& part, std::int64_t num_bytes, absl::string_view what)
      ABSL_LOCKS_EXCLUDED(mutex_);
  void Unreserve(const std::string& part) ABSL_LOCKS_EXCLUDED(mutex_);

  // Lets the peak that DescribeMemory gives begin anew.
  void ResetPeak();
  // "peak 12.3 GB of budget 70.0 GB on cuda:0"; empty on CPU.
  std::string DescribeMemory() const;

 private:
  explicit ComputeDevice(const ComputeDeviceOptions& options);

  const ComputeDeviceOptions options_;
  std::string id_ = "cpu";
  // One of the two.
  std::unique_ptr<ThreadPool> threads_;
  std::unique_ptr<cuda::Device> gpu_;

  absl::Mutex mutex_;
  std::map<std::string, std::int64_t> reserved_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace qst

#endif  // QST_WORKER_COMPUTE_DEVICE_H_
