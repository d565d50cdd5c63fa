#include "kernels/testing/cuda_shim/block_runner.h"

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <tuple>

uint3 threadIdx{};
uint3 blockIdx{};
dim3 blockDim;
dim3 gridDim;

namespace qst::cuda_shim {
namespace {

bool SameSite(const CallSite& a, const CallSite& b) {
  return a.line == b.line && (a.function == b.function || std::strcmp(a.function, b.function) == 0) &&
         (a.file == b.file || std::strcmp(a.file, b.file) == 0);
}

}  // namespace

BlockRunner& Runner() {
  // Never destroyed: a program may end while another of its threads still runs a kernel.
  static BlockRunner* runner = new BlockRunner;
  return *runner;
}

BlockRunner::Worker::Worker(BlockRunner* runner, std::size_t index) : fiber(&WorkerMain, this, index), runner(runner) {}

void BlockRunner::Run(const std::function<void()>& thread, dim3 dim, ThreadOrder order) {
  thread_ = &thread;
  dim_ = dim;
  order_ = order;
  num_threads_ = static_cast<int>(dim.x * dim.y * dim.z);
  num_started_ = 0;
  num_live_ = num_threads_;
  for (int first = 0; first < num_threads_; first += 32) {
    const int lanes = num_threads_ - first;
    warps_[first / 32].live = lanes >= 32 ? kFullMask : (1u << lanes) - 1u;
  }
  Fiber root;
  root_ = &root;
  current_ = IdleWorker();
  root.SwitchTo(current_->fiber);
  current_ = nullptr;
}

void BlockRunner::WorkerMain(void* worker) {
  Worker* self = static_cast<Worker*>(worker);
  for (;;) self->runner->StartThreads(self);
}

// Starts threads until one that waits may go on, or none is left; then makes way. Ready ones go first: the fewer
// threads are under way, the fewer stacks are in use.
void BlockRunner::StartThreads(Worker* self) {
  while (num_ready_ == 0 && num_started_ < num_threads_) {
    const int position = num_started_++;
    self->thread = order_ == ThreadOrder::kForward ? position : num_threads_ - 1 - position;
    threadIdx = IndexOf(self->thread);
    (*thread_)();
    ThreadReturned(self->thread);
  }
  idle_.push_back(self);
  if (num_ready_ == 0 && num_live_ == 0) {
    self->fiber.SwitchTo(*root_);
    return;
  }
  if (num_ready_ == 0) ReportDeadlock();
  Worker* next = NextWorker();
  Resume(next);
  self->fiber.SwitchTo(next->fiber);
}

void BlockRunner::ThreadReturned(int thread) {
  Warp& warp = warps_[thread / 32];
  const int lane = thread & 31;
  ReleaseHeld(warp, lane);
  warp.live &= ~(1u << lane);
  --num_live_;
  for (const Exchange* exchange : warp.open) {
    if ((exchange->mask >> lane & 1u) != 0) {
      KernelError("returned while %d lanes of its warp wait for it in %s, mask 0x%08x, %s:%d",
                  __builtin_popcount(exchange->arrived), exchange->site.function, exchange->mask, exchange->site.file,
                  exchange->site.line);
    }
  }
  // As on a device, a barrier waits for threads that have not returned.
  if (num_live_ > 0 && static_cast<int>(at_barrier_.size()) == num_live_) ReleaseBarrier();
}

void BlockRunner::Barrier(const CallSite& site) {
  if (!at_barrier_.empty() && !SameSite(*at_barrier_.front()->waits_at, site)) {
    const CallSite& other = *at_barrier_.front()->waits_at;
    KernelError("comes to %s, %s:%d, while others of its block wait in %s, %s:%d", site.function, site.file, site.line,
                other.function, other.file, other.line);
  }
  if (static_cast<int>(at_barrier_.size()) + 1 == num_live_) {
    ReleaseBarrier();
    return;
  }
  at_barrier_.push_back(current_);
  Wait(site, 0);
}

void BlockRunner::ReleaseBarrier() {
  for (Worker* worker : at_barrier_) {
    ready_[(ready_first_ + num_ready_++) % kMaxThreadsPerBlock] = worker;
  }
  at_barrier_.clear();
}

const void* BlockRunner::ExchangeInWarp(std::uint32_t mask, const void* mine, std::size_t bytes, const CallSite& site) {
  Warp& warp = warps_[current_->thread / 32];
  const int lane = current_->thread & 31;
  if ((mask >> lane & 1u) == 0) {
    KernelError("%s with mask 0x%08x, which lacks its own lane %d, %s:%d", site.function, mask, lane, site.file,
                site.line);
  }
  if ((mask & ~warp.live) != 0) {
    KernelError(
        "%s with mask 0x%08x, but of its warp only the lanes 0x%08x are there (others do not exist or have "
        "returned), %s:%d",
        site.function, mask, warp.live, site.file, site.line);
  }
  ReleaseHeld(warp, lane);
  Exchange* exchange = nullptr;
  for (Exchange* open : warp.open) {
    if (open->mask != mask) continue;
    if (open->bytes != bytes || !SameSite(open->site, site)) {
      KernelError("comes to %s, %s:%d, while other lanes of its mask 0x%08x wait in %s, %s:%d", site.function,
                  site.file, site.line, mask, open->site.function, open->site.file, open->site.line);
    }
    exchange = open;
  }
  if (exchange == nullptr) {
    if (free_exchanges_.empty()) {
      exchanges_.push_back(std::make_unique<Exchange>());
      free_exchanges_.push_back(exchanges_.back().get());
    }
    exchange = free_exchanges_.back();
    free_exchanges_.pop_back();
    exchange->mask = mask;
    exchange->arrived = 0;
    exchange->holders = __builtin_popcount(mask);
    exchange->bytes = bytes;
    exchange->site = site;
    const std::size_t lines = (32 * bytes + 63) / 64;
    if (exchange->values.size() < lines) exchange->values.resize(lines);
    if (mask != kFullMask) std::memset(exchange->values.data(), 0xff, 32 * bytes);
    warp.open.push_back(exchange);
  }
  warp.held[lane] = exchange;
  exchange->waiting[lane] = current_;
  exchange->arrived |= 1u << lane;
  if (bytes != 0) {
    std::memcpy(reinterpret_cast<unsigned char*>(exchange->values.data()) + lane * bytes, mine, bytes);
  }
  if (exchange->arrived == mask) {
    CompleteExchange(warp, exchange);
  } else {
    Wait(site, mask);
  }
  return exchange->values.data();
}

// Makes all lanes of the exchange ready but the one that runs, which came last and just goes on.
void BlockRunner::CompleteExchange(Warp& warp, Exchange* exchange) {
  for (std::size_t i = 0; i < warp.open.size(); ++i) {
    if (warp.open[i] != exchange) continue;
    warp.open[i] = warp.open.back();
    warp.open.pop_back();
    break;
  }
  const int own = current_->thread & 31;
  for (int lane = 0; lane < 32; ++lane) {
    if ((exchange->mask >> lane & 1u) == 0 || lane == own) continue;
    ready_[(ready_first_ + num_ready_++) % kMaxThreadsPerBlock] = exchange->waiting[lane];
  }
}

void BlockRunner::ReleaseHeld(Warp& warp, int lane) {
  Exchange* held = warp.held[lane];
  if (held == nullptr) return;
  warp.held[lane] = nullptr;
  if (--held->holders == 0) free_exchanges_.push_back(held);
}

void BlockRunner::Wait(const CallSite& site, std::uint32_t mask) {
  Worker* self = current_;
  self->waits_at = &site;
  self->waits_for = mask;
  Worker* next;
  if (num_ready_ > 0) {
    next = NextWorker();
    Resume(next);
  } else if (num_started_ < num_threads_) {
    next = IdleWorker();
    current_ = next;
  } else {
    ReportDeadlock();
  }
  self->fiber.SwitchTo(next->fiber);
}

BlockRunner::Worker* BlockRunner::NextWorker() {
  Worker* next = ready_[ready_first_];
  ready_first_ = (ready_first_ + 1) % kMaxThreadsPerBlock;
  --num_ready_;
  return next;
}

void BlockRunner::Resume(Worker* next) {
  next->waits_at = nullptr;
  current_ = next;
  threadIdx = IndexOf(next->thread);
}

BlockRunner::Worker* BlockRunner::IdleWorker() {
  if (idle_.empty()) {
    workers_.push_back(std::make_unique<Worker>(this, workers_.size()));
    return workers_.back().get();
  }
  Worker* worker = idle_.back();
  idle_.pop_back();
  return worker;
}

uint3 BlockRunner::IndexOf(int thread) const {
  const unsigned int t = static_cast<unsigned int>(thread);
  if (dim_.y == 1 && dim_.z == 1) return {t, 0, 0};
  return {t % dim_.x, t / dim_.x % dim_.y, t / (dim_.x * dim_.y)};
}

void BlockRunner::ReportDeadlock() {
  // Threads by what they wait at: how many, and the first of them.
  std::map<std::tuple<std::string, int, std::string, std::uint32_t>, std::pair<int, int>> groups;
  for (const auto& worker : workers_) {
    if (worker->waits_at == nullptr) continue;
    const CallSite& site = *worker->waits_at;
    auto [group, is_new] =
        groups.try_emplace({site.file, site.line, site.function, worker->waits_for}, 0, worker->thread);
    ++group->second.first;
    group->second.second = std::min(group->second.second, worker->thread);
  }
  std::fprintf(stderr,
               "CUDA shim: deadlock in block (%u, %u, %u) of %ux%ux%u threads: %d have returned, the others wait for "
               "each other:\n",
               blockIdx.x, blockIdx.y, blockIdx.z, dim_.x, dim_.y, dim_.z, num_threads_ - num_live_);
  for (const auto& [key, group] : groups) {
    const auto& [file, line, function, mask] = key;
    const uint3 index = IndexOf(group.second);
    std::fprintf(stderr, "  %d threads, the first of them (%u, %u, %u), in %s at %s:%d", group.first, index.x, index.y,
                 index.z, function.c_str(), file.c_str(), line);
    if (mask != 0) std::fprintf(stderr, ", mask 0x%08x", mask);
    std::fprintf(stderr, "\n");
  }
  std::abort();
}

void KernelError(const char* format, ...) {
  std::fprintf(stderr, "CUDA shim: thread (%u, %u, %u) of block (%u, %u, %u): ", threadIdx.x, threadIdx.y, threadIdx.z,
               blockIdx.x, blockIdx.y, blockIdx.z);
  va_list arguments;
  va_start(arguments, format);
  std::vfprintf(stderr, format, arguments);
  va_end(arguments);
  std::fprintf(stderr, "\n");
  std::abort();
}

namespace {
BlockRunner& RunnerInKernel(const char* function) {
  BlockRunner& runner = Runner();
  if (!runner.running()) {
    std::fprintf(stderr, "CUDA shim: %s is called by host code; only kernels may\n", function);
    std::abort();
  }
  return runner;
}
}  // namespace

void BlockBarrier(const CallSite& site) { RunnerInKernel(site.function).Barrier(site); }

int LaneId() { return RunnerInKernel("LaneId").lane(); }

const void* ExchangeInWarp(std::uint32_t mask, const void* mine, std::size_t bytes, const CallSite& site) {
  return RunnerInKernel(site.function).ExchangeInWarp(mask, mine, bytes, site);
}

}  // namespace qst::cuda_shim
