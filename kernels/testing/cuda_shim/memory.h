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

// Lets the process touch device memory as long as one exists. Matters with QST_CUDA_SHIM_PROTECT=1 only: then host code
// that uses a device pointer by itself stops the program, as long as no work of any device runs at that moment.
class DeviceMemoryAccess {
 public:
  DeviceMemoryAccess();
  DeviceMemoryAccess(const DeviceMemoryAccess&) = delete;
  DeviceMemoryAccess& operator=(const DeviceMemoryAccess&) = delete;
  ~DeviceMemoryAccess();
};

// Stops the program with a message if a byte beside any allocation has been written.
void CheckAllGuards();

}  // namespace qst::cuda_shim

#endif  // QST_KERNELS_TESTING_CUDA_SHIM_MEMORY_H_
