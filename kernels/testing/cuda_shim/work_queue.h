// What devices have been given to do and have not done yet: pieces of work and what each has to wait for.
#ifndef QST_KERNELS_TESTING_CUDA_SHIM_WORK_QUEUE_H_
#define QST_KERNELS_TESTING_CUDA_SHIM_WORK_QUEUE_H_

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <random>
#include <vector>

namespace qst::cuda_shim {

struct Work;
using WorkPtr = std::shared_ptr<Work>;

// No thread of its own: work runs on threads that wait for some of it. Thread-safe.
class WorkQueue {
 public:
  static WorkQueue& Get();

  // Does nothing yet. `after` may hold nulls and work long done. `ready`, if given, is asked once all of `after` is
  // done, again and again, until it says true; it must not call back here.
  WorkPtr Add(int device, std::function<void()> run, const std::vector<WorkPtr>& after,
              std::function<bool()> ready = {});

  // Returns when `work` (may be null) is done. Runs it and what it waits for; in the deferred mode perhaps other
  // work that may run, too.
  void Finish(const WorkPtr& work);

  // The same, but returns as well when what is left waits for work that is not ready.
  void Advance(const WorkPtr& work);

  // Finish for all that `device` has been given up to now.
  void FinishDevice(int device);

  // Whether `work` is done. If not, some work has been run meanwhile, so that asking often enough ends.
  bool Poll(const WorkPtr& work);

  // Whether work waits until somebody needs it. From QST_CUDA_SHIM_ASYNC; read each time.
  static bool IsDeferred();

 private:
  using Lock = std::unique_lock<std::mutex>;

  // One step towards `work`: runs something, or waits a little for another thread. `path` is kept between steps.
  void Step(Lock& lock, const WorkPtr& work, bool only_needed, std::vector<WorkPtr>& path);
  WorkPtr NeededNow(const WorkPtr& work, std::vector<WorkPtr>& path);
  WorkPtr AnyReady();
  void RunUnlocked(Lock& lock, const WorkPtr& work);
  bool ChooseOnlyNeeded();
  std::uint32_t Random();

  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<WorkPtr> ready_;    // waits for no other work; order has no meaning
  std::vector<WorkPtr> pending_;  // all that is not done
  int num_running_ = 0;
  std::unique_ptr<std::mt19937> random_;
};

}  // namespace qst::cuda_shim

#endif  // QST_KERNELS_TESTING_CUDA_SHIM_WORK_QUEUE_H_
