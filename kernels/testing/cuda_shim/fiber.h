// Stacks that take turns on one OS thread: what the threads of a block run on.
#ifndef QST_KERNELS_TESTING_CUDA_SHIM_FIBER_H_
#define QST_KERNELS_TESTING_CUDA_SHIM_FIBER_H_

#include <cstddef>

namespace qst::cuda_shim {

// The stack, and where its code waits. At any time at most one Fiber of a group that switches among itself runs. All
// switching of a group happens on one OS thread at a time; the group may move to another OS thread between two
// switches of its root only.
class Fiber {
 public:
  // The stack that the calling OS thread is on already; to come back to.
  Fiber();
  // A new stack. The first switch to it calls `entry(argument)`, which never returns. Below the stack lies a page
  // that cannot be accessed. `index` shifts the stack's top, so that tops of many stacks do not share cache sets.
  Fiber(void (*entry)(void*), void* argument, std::size_t index);
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;
  // Frees the stack. What is on it is not destroyed.
  ~Fiber();

  // Called by the fiber that runs: stops here, goes on in `next`; returns when somebody switches back.
  void SwitchTo(Fiber& next);

 private:
  void FinishSwitch(Fiber& from);

  void* context_ = nullptr;
  void (*entry_)(void*) = nullptr;
  void* argument_ = nullptr;
  std::byte* mapping_ = nullptr;
  std::size_t mapping_bytes_ = 0;
  // For sanitizers: the usable stack, and what they keep for a stack that waits.
  const void* stack_bottom_ = nullptr;
  std::size_t stack_bytes_ = 0;
  void* sanitizer_state_ = nullptr;
};

}  // namespace qst::cuda_shim

#endif  // QST_KERNELS_TESTING_CUDA_SHIM_FIBER_H_
