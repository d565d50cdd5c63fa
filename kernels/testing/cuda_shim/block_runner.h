// Runs one block of a grid: all its threads, each on a fiber while it waits, on the calling OS thread.
#ifndef QST_KERNELS_TESTING_CUDA_SHIM_BLOCK_RUNNER_H_
#define QST_KERNELS_TESTING_CUDA_SHIM_BLOCK_RUNNER_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "cuda_shim/block.h"
#include "kernels/testing/cuda_shim/fiber.h"

namespace qst::cuda_shim {

inline constexpr int kMaxThreadsPerBlock = 1024;

// In which order threads of a block start, and blocks of a grid run: nothing may depend on it.
enum class ThreadOrder { kForward, kReverse };

// Threads start one after the other on the same fiber for as long as they do not wait. One that waits, at a barrier or
// for lanes of its warp, keeps the fiber, and others go on with another one from the pool. Nothing is ever created
// twice: fibers outlive blocks and launches.
//
// One block at a time: the caller keeps OS threads apart.
class BlockRunner {
 public:
  BlockRunner() = default;
  BlockRunner(const BlockRunner&) = delete;
  BlockRunner& operator=(const BlockRunner&) = delete;

  // Calls `thread` once for every thread of a block of `dim`; returns when all have returned.
  void Run(const std::function<void()>& thread, dim3 dim, ThreadOrder order);

  // The rest is called by kernels, out of `thread`.
  bool running() const { return current_ != nullptr; }
  int lane() const { return current_->thread & 31; }
  void Barrier(const CallSite& site);
  const void* ExchangeInWarp(std::uint32_t mask, const void* mine, std::size_t bytes, const CallSite& site);

 private:
  struct Worker;

  // What the lanes of one mask bring to one exchange. Lives until each of them has come to its next one.
  struct Exchange {
    std::uint32_t mask = 0;
    std::uint32_t arrived = 0;
    int holders = 0;
    std::size_t bytes = 0;
    CallSite site{};
    std::array<Worker*, 32> waiting{};  // by lane
    struct alignas(64) Line {
      unsigned char bytes[64];
    };
    std::vector<Line> values;
  };

  struct Warp {
    std::uint32_t live = 0;            // lanes that have not returned (or not started)
    std::vector<Exchange*> open;       // that some lanes wait at
    std::array<Exchange*, 32> held{};  // by lane: its last one
  };

  // A fiber with the thread that it runs.
  struct Worker {
    explicit Worker(BlockRunner* runner, std::size_t index);
    Fiber fiber;
    BlockRunner* runner;
    int thread = 0;
    const CallSite* waits_at = nullptr;  // on the fiber's own stack
    std::uint32_t waits_for = 0;         // mask; 0 at a barrier of the block
  };

  static void WorkerMain(void* worker);
  void StartThreads(Worker* self);
  void ThreadReturned(int thread);
  void ReleaseBarrier();
  void CompleteExchange(Warp& warp, Exchange* exchange);
  void ReleaseHeld(Warp& warp, int lane);
  // Blocks the current thread until something makes it ready.
  void Wait(const CallSite& site, std::uint32_t mask);
  Worker* NextWorker();
  void Resume(Worker* next);
  Worker* IdleWorker();
  [[noreturn]] void ReportDeadlock();
  uint3 IndexOf(int thread) const;

  const std::function<void()>* thread_ = nullptr;
  dim3 dim_;
  ThreadOrder order_ = ThreadOrder::kForward;
  int num_threads_ = 0;
  int num_started_ = 0;
  int num_live_ = 0;  // not returned
  Worker* current_ = nullptr;
  Fiber* root_ = nullptr;  // of the OS thread in Run
  std::vector<std::unique_ptr<Worker>> workers_;
  std::vector<Worker*> idle_;
  std::vector<Worker*> at_barrier_;
  // Ring of those that may go on, in the order in which they became ready.
  std::array<Worker*, kMaxThreadsPerBlock> ready_{};
  int ready_first_ = 0;
  int num_ready_ = 0;
  std::array<Warp, kMaxThreadsPerBlock / 32> warps_;
  std::vector<std::unique_ptr<Exchange>> exchanges_;
  std::vector<Exchange*> free_exchanges_;
};

// The only one.
BlockRunner& Runner();

}  // namespace qst::cuda_shim

#endif  // QST_KERNELS_TESTING_CUDA_SHIM_BLOCK_RUNNER_H_
