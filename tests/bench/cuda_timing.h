// What benchmarks on a GPU share: a device, time measured by its own clock, and lines of JSON.
#ifndef QST_TESTS_BENCH_CUDA_TIMING_H_
#define QST_TESTS_BENCH_CUDA_TIMING_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kernels/cuda/device.h"
#include "kernels/device.h"

namespace qst {

// The first GPU, with a stream.
class CudaTimer {
 public:
  // Fails as cuda::Device::Open does: no GPU, or a build without the backend.
  static absl::StatusOr<std::unique_ptr<CudaTimer>> Open();

  const OpContext& context() const { return context_; }
  const std::string& device_name() const { return device_->name(); }

  // Milliseconds of the device for what `enqueue` enqueues: each round calls it until at least 2 ms of work are under
  // way, back to back; the result is the median over rounds, after one that warms up.
  absl::StatusOr<double> Milliseconds(const std::function<absl::Status()>& enqueue);

  // GB/s (1e9) that a copy of 1 GiB on the device reads and writes together, or a smaller one if that does not fit: the
  // ceiling of whatever is bound by memory.
  absl::StatusOr<double> CopyBandwidth();

 private:
  CudaTimer() = default;
  absl::StatusOr<double> MillisecondsOfCalls(const std::function<absl::Status()>& enqueue, std::int64_t calls);

  std::unique_ptr<cuda::Device> device_;
  cuda::StreamPtr stream_;
  OpContext context_;
};

// {"name": ..., "shape": ..., "value": ..., "unit": ..., "ratio": ...}, without a line end. ratio: value by the ceiling
// that the benchmark names, below 0: none.
std::string JsonLine(absl::string_view name, absl::string_view shape, double value, absl::string_view unit,
                     double ratio);

}  // namespace qst

#endif  // QST_TESTS_BENCH_CUDA_TIMING_H_
