#include "kernels/device.h"

#include <cpuid.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "proto/support/status_macros.h"

namespace qst {
namespace {

// Ops of one layer follow each other within microseconds, and waking a sleeping thread costs more than
// many of them. So threads look for work a little while before they sleep; not longer, since other
// processes (stages, side worker) may want the core.
constexpr std::chrono::microseconds kSpin(40);

// More chunks than threads even out cores of unequal speed or load.
constexpr std::int64_t kChunksPerThread = 4;

void Pause() { __builtin_ia32_pause(); }

// Polls `done` for at most kSpin; whether it came true.
template <typename Predicate>
bool SpinUntil(const Predicate& done) {
  const auto deadline = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < 8; ++i) {
      if (done()) return true;
      Pause();
    }
  } while (std::chrono::steady_clock::now() < deadline);
  return false;
}

bool HasAvx2() {
  // GCC's check of AVX2 includes the operating system's support of the wide registers.
  if (!__builtin_cpu_supports("avx2")) return false;
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (__get_cpuid(1, &eax, &ebx, &ecx, &edx) == 0) return false;
  constexpr unsigned kFma = 1u << 12;
  constexpr unsigned kF16c = 1u << 29;
  return (ecx & kFma) != 0 && (ecx & kF16c) != 0;
}

}  // namespace

// Standard mutexes, since the thread sanitizer sees through them; Debian's Abseil is built without its hooks.
//
// One job at a time. A job is open from the moment its caller publishes it until the caller itself finds
// no chunk left; a worker joins only an open job, so the caller never waits for a thread that slept
// through the whole job.
struct ThreadPool::State {
  using Body = std::function<void(std::int64_t begin, std::int64_t end)>;

  std::mutex call_mutex;  // held by the caller being served

  std::mutex mutex;
  std::condition_variable work_published;
  std::condition_variable all_left;
  bool is_open = false;      // guarded by mutex
  bool is_stopping = false;  // guarded by mutex

  // Written under `mutex`; polled without it while spinning.
  std::atomic<std::uint64_t> generation{0};
  std::atomic<int> num_inside{0};

  // The job. Written before it opens, constant until the last worker has left.
  const Body* body = nullptr;
  std::int64_t n = 0;
  std::int64_t chunk = 1;
  std::atomic<std::int64_t> next{0};

  bool can_spin = false;
  std::vector<std::thread> workers;

  void RunChunks() {
    for (;;) {
      const std::int64_t begin = next.fetch_add(chunk, std::memory_order_relaxed);
      if (begin >= n) return;
      (*body)(begin, std::min(n, begin + chunk));
    }
  }

  void WorkerLoop() {
    std::uint64_t seen = 0;
    for (;;) {
      if (can_spin) {
        SpinUntil([&] { return generation.load(std::memory_order_acquire) != seen; });
      }
      {
        std::unique_lock<std::mutex> lock(mutex);
        work_published.wait(lock, [&] { return generation.load(std::memory_order_relaxed) != seen || is_stopping; });
        if (is_stopping) return;
        seen = generation.load(std::memory_order_relaxed);
        if (!is_open) continue;
        num_inside.fetch_add(1, std::memory_order_relaxed);
      }
      RunChunks();
      std::lock_guard<std::mutex> lock(mutex);
      // Release: the caller, which may only poll this counter, must see what the bodies wrote.
      if (num_inside.fetch_sub(1, std::memory_order_release) == 1) all_left.notify_all();
    }
  }
};

ThreadPool::ThreadPool(int num_threads) : num_threads_(num_threads), state_(std::make_unique<State>()) {
  QST_CHECK(num_threads >= 1);
  // With more threads than cores a spinning thread takes the core from one that has work.
  state_->can_spin = num_threads <= static_cast<int>(std::thread::hardware_concurrency());
  state_->workers.reserve(num_threads - 1);
  for (int i = 1; i < num_threads; ++i) {
    state_->workers.emplace_back([state = state_.get()] { state->WorkerLoop(); });
  }
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard<std::mutex> lock(state_->mutex);
    state_->is_stopping = true;
    // Ends the spinning of workers too.
    state_->generation.fetch_add(1, std::memory_order_release);
    state_->work_published.notify_all();
  }
  for (std::thread& worker : state_->workers) worker.join();
}

void ThreadPool::ParallelFor(std::int64_t n, std::int64_t grain,
                             const std::function<void(std::int64_t begin, std::int64_t end)>& body) {
  if (n <= 0) return;
  grain = std::max<std::int64_t>(grain, 1);
  if (num_threads_ == 1 || n <= grain) {
    body(0, n);
    return;
  }
  const std::int64_t num_grains = (n - 1) / grain + 1;
  const std::int64_t grains_per_chunk = (num_grains - 1) / (num_threads_ * kChunksPerThread) + 1;

  State& s = *state_;
  std::lock_guard<std::mutex> call_lock(s.call_mutex);
  s.body = &body;
  s.n = n;
  s.chunk = grains_per_chunk * grain;
  s.next.store(0, std::memory_order_relaxed);
  {
    std::lock_guard<std::mutex> lock(s.mutex);
    s.is_open = true;
    s.generation.fetch_add(1, std::memory_order_release);
    s.work_published.notify_all();
  }
  s.RunChunks();
  {
    std::lock_guard<std::mutex> lock(s.mutex);
    s.is_open = false;
  }
  const auto all_left = [&s] { return s.num_inside.load(std::memory_order_acquire) == 0; };
  if (s.can_spin && SpinUntil(all_left)) return;
  std::unique_lock<std::mutex> lock(s.mutex);
  s.all_left.wait(lock, all_left);
}

absl::StatusOr<CpuIsa> ResolveIsa(CpuIsa wanted) {
  static const bool has_avx2 = HasAvx2();
  switch (wanted) {
    case CpuIsa::kAuto:
      return has_avx2 ? CpuIsa::kAvx2 : CpuIsa::kPortable;
    case CpuIsa::kPortable:
      return CpuIsa::kPortable;
    case CpuIsa::kAvx2:
      if (has_avx2) return CpuIsa::kAvx2;
      return absl::FailedPreconditionError(
          "instruction set avx2 was asked for, but this machine lacks AVX2, FMA or F16C; use auto or portable");
  }
  return absl::InvalidArgumentError(absl::StrCat("unknown instruction set number ", static_cast<int>(wanted)));
}

absl::StatusOr<CpuIsa> ParseIsa(absl::string_view name) {
  if (name == "auto") return CpuIsa::kAuto;
  if (name == "portable") return CpuIsa::kPortable;
  if (name == "avx2") return CpuIsa::kAvx2;
  return absl::InvalidArgumentError(
      absl::StrCat("unknown instruction set \"", name, "\"; known are auto, portable and avx2"));
}

}  // namespace qst
