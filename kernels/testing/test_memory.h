// Memory for test operands that ops of every backend can reach: pinned host memory where a GPU is used, plain memory
// else. So one test serves all backends, reads results in place and has guard bytes around them.
#ifndef QST_KERNELS_TESTING_TEST_MEMORY_H_
#define QST_KERNELS_TESTING_TEST_MEMORY_H_

#include <cstddef>
#include <new>
#include <vector>

namespace qst {

// nullptr: out of memory.
void* AllocateTestBytes(std::size_t num_bytes);
void FreeTestBytes(void* memory);
// Waits for all work of the GPU, if there is one: before the host looks at results. False: a kernel failed.
bool SynchronizeTestDevice();

template <typename T>
struct TestAllocator {
  using value_type = T;
  TestAllocator() = default;
  template <typename U>
  TestAllocator(const TestAllocator<U>&) {}  // NOLINT: as the standard asks.
  T* allocate(std::size_t n) {
    void* const memory = AllocateTestBytes(n * sizeof(T));
    if (memory == nullptr) throw std::bad_alloc();
    return static_cast<T*>(memory);
  }
  void deallocate(T* memory, std::size_t) { FreeTestBytes(memory); }
  template <typename U>
  bool operator==(const TestAllocator<U>&) const {
    return true;
  }
  template <typename U>
  bool operator!=(const TestAllocator<U>&) const {
    return false;
  }
};

// For whatever an op gets by pointer: indices, offsets, statistics.
template <typename T>
using TestVector = std::vector<T, TestAllocator<T>>;

// A copy that ops of every backend can reach.
template <typename T>
TestVector<T> Reachable(const std::vector<T>& values) {
  return TestVector<T>(values.begin(), values.end());
}

// The vector once the device has finished with it.
template <typename T>
const TestVector<T>& Synced(const TestVector<T>& vector) {
  SynchronizeTestDevice();
  return vector;
}

}  // namespace qst

#endif  // QST_KERNELS_TESTING_TEST_MEMORY_H_
