#include "kernels/testing/cuda_shim/work_queue.h"

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "kernels/testing/cuda_shim/device.h"
#include "kernels/testing/cuda_shim/memory.h"

namespace qst::cuda_shim {

struct Work {
  enum class State { kPending, kRunning, kDone };

  int device = 0;
  std::function<void()> run;
  std::function<bool()> ready;
  State state = State::kPending;
  int num_blockers = 0;             // of `after`, not done
  std::vector<WorkPtr> after;       // empty once done, so that no chain of old work stays
  std::vector<WorkPtr> successors;  // count this one among their blockers
  std::size_t pending_index = 0;
  std::size_t ready_index = 0;
};

namespace {

enum class Mode { kEager, kMixed, kLate, kEarly };

Mode ModeFromEnvironment() {
  const char* value = std::getenv("QST_CUDA_SHIM_ASYNC");
  if (value == nullptr || *value == '\0' || std::strcmp(value, "0") == 0) return Mode::kEager;
  if (std::strcmp(value, "1") == 0) return Mode::kMixed;
  if (std::strcmp(value, "late") == 0) return Mode::kLate;
  if (std::strcmp(value, "early") == 0) return Mode::kEarly;
  std::fprintf(stderr, "CUDA shim: QST_CUDA_SHIM_ASYNC=%s, must be 0, 1, late or early\n", value);
  std::abort();
}

}  // namespace

WorkQueue& WorkQueue::Get() {
  static WorkQueue* queue = new WorkQueue;
  return *queue;
}

bool WorkQueue::IsDeferred() { return ModeFromEnvironment() != Mode::kEager; }

WorkPtr WorkQueue::Add(int device, std::function<void()> run, const std::vector<WorkPtr>& after,
                       std::function<bool()> ready) {
  auto work = std::make_shared<Work>();
  work->device = device;
  work->run = std::move(run);
  work->ready = std::move(ready);
  const Lock lock(mutex_);
  for (const WorkPtr& before : after) {
    if (before == nullptr || before->state == Work::State::kDone) continue;
    work->after.push_back(before);
    before->successors.push_back(work);
    ++work->num_blockers;
  }
  work->pending_index = pending_.size();
  pending_.push_back(work);
  if (work->num_blockers == 0) {
    work->ready_index = ready_.size();
    ready_.push_back(work);
  }
  return work;
}

void WorkQueue::Finish(const WorkPtr& work) {
  if (work == nullptr) return;
  Lock lock(mutex_);
  const bool only_needed = ChooseOnlyNeeded();
  std::vector<WorkPtr> path;
  while (work->state != Work::State::kDone) Step(lock, work, only_needed, path);
}

void WorkQueue::Advance(const WorkPtr& work) {
  if (work == nullptr) return;
  Lock lock(mutex_);
  std::vector<WorkPtr> path;
  while (work->state != Work::State::kDone) {
    if (const WorkPtr next = NeededNow(work, path); next != nullptr) {
      RunUnlocked(lock, next);
    } else if (path.back()->state == Work::State::kRunning) {
      changed_.wait(lock);
    } else {
      return;
    }
  }
}

void WorkQueue::FinishDevice(int device) {
  std::vector<WorkPtr> given;
  {
    const Lock lock(mutex_);
    for (const WorkPtr& work : pending_) {
      if (work->device == device) given.push_back(work);
    }
  }
  for (const WorkPtr& work : given) Finish(work);
}

bool WorkQueue::Poll(const WorkPtr& work) {
  if (work == nullptr) return true;
  Lock lock(mutex_);
  if (work->state == Work::State::kDone) return true;
  std::vector<WorkPtr> path;
  Step(lock, work, ChooseOnlyNeeded(), path);
  return false;
}

void WorkQueue::Step(Lock& lock, const WorkPtr& work, bool only_needed, std::vector<WorkPtr>& path) {
  WorkPtr next = only_needed ? NeededNow(work, path) : nullptr;
  // What is needed may be with another thread, or not be ready before others have run.
  if (next == nullptr) next = AnyReady();
  if (next != nullptr) {
    RunUnlocked(lock, next);
    return;
  }
  if (num_running_ == 0 && ready_.empty()) {
    std::fprintf(stderr, "CUDA shim: nothing can run, but not all is done\n");
    std::abort();
  }
  // Readiness can change with nobody to tell: another process may be at work.
  changed_.wait_for(lock, std::chrono::milliseconds(1));
}

// Follows what blocks `work` down to something that may run now.
WorkPtr WorkQueue::NeededNow(const WorkPtr& work, std::vector<WorkPtr>& path) {
  if (path.empty()) path.push_back(work);
  while (!path.empty()) {
    const WorkPtr top = path.back();
    if (top->state == Work::State::kDone) {
      path.pop_back();
    } else if (top->num_blockers > 0) {
      for (const WorkPtr& before : top->after) {
        if (before->state != Work::State::kDone) {
          path.push_back(before);
          break;
        }
      }
    } else if (top->state == Work::State::kPending && (!top->ready || top->ready())) {
      return top;
    } else {
      return nullptr;
    }
  }
  return nullptr;
}

WorkPtr WorkQueue::AnyReady() {
  if (ready_.empty()) return nullptr;
  const std::size_t first = Random() % ready_.size();
  for (std::size_t i = 0; i < ready_.size(); ++i) {
    const WorkPtr& work = ready_[(first + i) % ready_.size()];
    if (!work->ready || work->ready()) return work;
  }
  return nullptr;
}

void WorkQueue::RunUnlocked(Lock& lock, const WorkPtr& work_in_list) {
  const WorkPtr work = work_in_list;
  work->state = Work::State::kRunning;
  ready_[work->ready_index] = ready_.back();
  ready_[work->ready_index]->ready_index = work->ready_index;
  ready_.pop_back();
  ++num_running_;
  lock.unlock();
  if (work->run) {
    const DeviceMemoryAccess access;
    work->run();
  }
  // What the closures hold (staged bytes, arguments) goes now, not with the last one who knows the work.
  work->run = nullptr;
  lock.lock();
  work->ready = nullptr;
  --num_running_;
  work->state = Work::State::kDone;
  work->after.clear();
  pending_[work->pending_index] = pending_.back();
  pending_[work->pending_index]->pending_index = work->pending_index;
  pending_.pop_back();
  for (const WorkPtr& next : work->successors) {
    if (--next->num_blockers > 0) continue;
    next->ready_index = ready_.size();
    ready_.push_back(next);
  }
  work->successors.clear();
  changed_.notify_all();
}

bool WorkQueue::ChooseOnlyNeeded() {
  switch (ModeFromEnvironment()) {
    case Mode::kMixed:
      return (Random() & 1u) != 0;
    case Mode::kEarly:
      return false;
    case Mode::kEager:
    case Mode::kLate:
      break;
  }
  return true;
}

std::uint32_t WorkQueue::Random() {
  if (random_ == nullptr) {
    random_ = std::make_unique<std::mt19937>(static_cast<std::uint32_t>(SizeFromEnvironment("QST_CUDA_SHIM_SEED", 1)));
  }
  return (*random_)();
}

}  // namespace qst::cuda_shim
