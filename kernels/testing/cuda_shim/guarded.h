// Bytes around a piece of memory that nobody may touch, and bytes that show that nobody has written a value yet.
#ifndef QST_KERNELS_TESTING_CUDA_SHIM_GUARDED_H_
#define QST_KERNELS_TESTING_CUDA_SHIM_GUARDED_H_

#include <cstddef>
#include <cstring>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace qst::cuda_shim {

inline constexpr std::size_t kGuardBytes = 256;
inline constexpr unsigned char kGuardByte = 0xa5;
// As floats and halves of all kinds: NaN.
inline constexpr unsigned char kFreshByte = 0xff;

// Makes [at, at + bytes) a guard. Under the address sanitizer reading it is an error, too.
inline void SetGuard(unsigned char* at, std::size_t bytes) {
  std::memset(at, kGuardByte, bytes);
#if defined(__SANITIZE_ADDRESS__)
  ASAN_POISON_MEMORY_REGION(at, bytes);
#endif
}

// Makes a guard plain memory again. Returns the offset of the first byte that is not as it was set, or `bytes`.
inline std::size_t TakeGuard(unsigned char* at, std::size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
  ASAN_UNPOISON_MEMORY_REGION(at, bytes);
#endif
  std::size_t intact = 0;
  while (intact < bytes && at[intact] == kGuardByte) ++intact;
  return intact;
}

}  // namespace qst::cuda_shim

#endif  // QST_KERNELS_TESTING_CUDA_SHIM_GUARDED_H_
