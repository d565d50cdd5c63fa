// Where and with what ops run: device, threads, stream. Passed explicitly to every op.
#ifndef QST_KERNELS_DEVICE_H_
#define QST_KERNELS_DEVICE_H_

#include <cstdint>
#include <functional>
#include <memory>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace qst {

enum class DeviceType : std::uint8_t { kCpu, kCuda };

// Instruction sets of the CPU backend. kAuto takes the best that the machine has.
enum class CpuIsa : std::uint8_t { kAuto, kPortable, kAvx2 };

// A fixed set of threads that splits index ranges. Which thread computes which index never changes a
// result: kernels give every output element one reduction order of its own.
class ThreadPool {
 public:
  // num_threads >= 1; 1 runs everything on the calling thread.
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return num_threads_; }

  // Calls body(begin, end) on disjoint ranges that cover [0, n), each a multiple of `grain` long (the
  // last one excepted), and returns when all are done. One call at a time per pool from outside is
  // served; concurrent callers wait for each other. Must not be called from inside a body.
  void ParallelFor(std::int64_t n, std::int64_t grain,
                   const std::function<void(std::int64_t begin, std::int64_t end)>& body);

 private:
  struct State;
  int num_threads_;
  std::unique_ptr<State> state_;
};

namespace cuda {
class Stream;  // kernels/cuda/device.h
}  // namespace cuda

// What an op needs besides its operands. Cheap to copy; owns nothing.
struct OpContext {
  DeviceType device = DeviceType::kCpu;
  ThreadPool* threads = nullptr;  // CPU: not null
  CpuIsa isa = CpuIsa::kAuto;     // CPU: resolved once by ResolveIsa
  cuda::Stream* stream = nullptr;  // CUDA: not null; ops are enqueued there
};

// The instruction set to use when `wanted` is asked for: kAuto becomes the best one available; an
// explicit one that the machine lacks is kFailedPrecondition.
absl::StatusOr<CpuIsa> ResolveIsa(CpuIsa wanted);
// "auto", "portable", "avx2".
absl::StatusOr<CpuIsa> ParseIsa(absl::string_view name);

}  // namespace qst

#endif  // QST_KERNELS_DEVICE_H_
