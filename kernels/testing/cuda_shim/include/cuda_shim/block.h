// What a kernel sees of its block: built-in variables, barriers, dynamic shared memory, and exchange of values inside a
// warp, from which shuffles, votes (warp.h) and matrix instructions are made.
//
// Every function here may be called by a kernel only and stops the program with a message when it cannot end on a
// device either: when threads of the block wait for each other, when a mask names a lane that is not there.
#ifndef QST_KERNELS_TESTING_CUDA_SHIM_INCLUDE_CUDA_SHIM_BLOCK_H_
#define QST_KERNELS_TESTING_CUDA_SHIM_INCLUDE_CUDA_SHIM_BLOCK_H_

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "cuda_shim/vector_types.h"

inline constexpr int warpSize = 32;

// Of the thread that runs. One thread of one launch runs at a time, so these need not be thread-local.
extern uint3 threadIdx;
extern uint3 blockIdx;
extern dim3 blockDim;
extern dim3 gridDim;

namespace qst::cuda_shim {

inline constexpr std::uint32_t kFullMask = 0xffffffffu;

// Where in the source a thread waits, for messages. Threads that meet must have come from the same place.
struct CallSite {
  const char* function;
  const char* file;
  int line;
};

// Start of this launch's dynamic shared memory, aligned to 128 bytes. All bytes are 0xff when a block starts.
unsigned char* DynamicShared();
std::size_t DynamicSharedBytes();

void BlockBarrier(const CallSite& site);

// Position in the warp, 0 to 31, of the thread that runs.
int LaneId();

// Waits for all lanes of `mask` to call it with the same mask, size and site. Returns 32 values, `bytes` apart: what
// each lane of the mask brought; 0xff in the places of other lanes. They stay until the caller's next such call.
const void* ExchangeInWarp(std::uint32_t mask, const void* mine, std::size_t bytes, const CallSite& site);

// All 32 lanes of the warp bring a value and get the values of all, by lane.
template <class T>
const T* WarpGather(const T& mine, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  static_assert(std::is_trivially_copyable_v<T> && alignof(T) <= 64);
  return static_cast<const T*>(ExchangeInWarp(kFullMask, &mine, sizeof(T), {"WarpGather", file, line}));
}

// Prints the message with the position of the thread that runs, and aborts.
[[noreturn]] void KernelError(const char* format, ...) __attribute__((format(printf, 1, 2)));

}  // namespace qst::cuda_shim

inline void __syncthreads(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  qst::cuda_shim::BlockBarrier({"__syncthreads", file, line});
}

inline void __syncwarp(unsigned int mask = qst::cuda_shim::kFullMask, const char* file = __builtin_FILE(),
                       int line = __builtin_LINE()) {
  qst::cuda_shim::ExchangeInWarp(mask, nullptr, 0, {"__syncwarp", file, line});
}

[[noreturn]] inline void __trap() { qst::cuda_shim::KernelError("__trap"); }

#endif  // QST_KERNELS_TESTING_CUDA_SHIM_INCLUDE_CUDA_SHIM_BLOCK_H_
