// The simulated devices' memory and page-locked host memory.
#ifndef QST_KERNELS_TESTING_CUDA_SHIM_MEMORY_H_
#define QST_KERNELS_TESTING_CUDA_SHIM_MEMORY_H_

#include <cstddef>

namespace qst::cuda_shim {

enum class MemoryKind {
  kPageable,  // the runtime does not know it
  kPinned,
  kDevice,
};

struct MemoryRange {
  MemoryKind kind = MemoryKind::kPageable;
  int device = 0;
  std::size_t bytes_left = 0;  // from the address to the allocation's end; meaningless for kPageable
};

// What the runtime knows of an address.
MemoryRange FindMemory(const void* address);

// Stops the program with a message if a byte beside any allocation has been written.
void CheckAllGuards();

}  // namespace qst::cuda_shim

#endif  // QST_KERNELS_TESTING_CUDA_SHIM_MEMORY_H_
