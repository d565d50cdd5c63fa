// Shuffles, votes and reductions inside a warp. Shuffles of 4 and 8 byte values; a lane outside the mask gives
// a value of 0xff bytes (undefined on a device).
#ifndef QST_KERNELS_TESTING_CUDA_SHIM_INCLUDE_CUDA_SHIM_WARP_H_
#define QST_KERNELS_TESTING_CUDA_SHIM_INCLUDE_CUDA_SHIM_WARP_H_

#include "cuda_shim/block.h"

namespace qst::cuda_shim {

template <class T>
const T* Exchange(unsigned int mask, const T& mine, const CallSite& site) {
  static_assert(std::is_trivially_copyable_v<T> && alignof(T) <= 64);
  return static_cast<const T*>(ExchangeInWarp(mask, &mine, sizeof(T), site));
}

// First lane of this lane's group of `width`.
inline int GroupStart(int lane, int width) {
  if (width < 1 || width > 32 || (width & (width - 1)) != 0)
    KernelError("shuffle of width %d, not a power of 2", width);
  return lane & ~(width - 1);
}

template <class T, class Combine>
T ReduceLanes(unsigned int mask, T value, Combine combine, const CallSite& site) {
  const T* all = Exchange(mask, value, site);
  bool first = true;
  T result = value;
  for (int lane = 0; lane < 32; ++lane) {
    if ((mask >> lane & 1u) == 0) continue;
    result = first ? all[lane] : combine(result, all[lane]);
    first = false;
  }
  return result;
}

}  // namespace qst::cuda_shim

template <class T>
T __shfl_sync(unsigned int mask, T value, int source_lane, int width = 32, const char* file = __builtin_FILE(),
              int line = __builtin_LINE()) {
  const int start = qst::cuda_shim::GroupStart(qst::cuda_shim::LaneId(), width);
  return qst::cuda_shim::Exchange(mask, value, {"__shfl_sync", file, line})[start + (source_lane & (width - 1))];
}

template <class T>
T __shfl_up_sync(unsigned int mask, T value, unsigned int delta, int width = 32, const char* file = __builtin_FILE(),
                 int line = __builtin_LINE()) {
  const int lane = qst::cuda_shim::LaneId();
  const int start = qst::cuda_shim::GroupStart(lane, width);
  const T* all = qst::cuda_shim::Exchange(mask, value, {"__shfl_up_sync", file, line});
  return delta > static_cast<unsigned int>(lane - start) ? value : all[lane - static_cast<int>(delta)];
}

template <class T>
T __shfl_down_sync(unsigned int mask, T value, unsigned int delta, int width = 32, const char* file = __builtin_FILE(),
                   int line = __builtin_LINE()) {
  const int lane = qst::cuda_shim::LaneId();
  const int end = qst::cuda_shim::GroupStart(lane, width) + width;
  const T* all = qst::cuda_shim::Exchange(mask, value, {"__shfl_down_sync", file, line});
  return delta >= static_cast<unsigned int>(end - lane) ? value : all[lane + static_cast<int>(delta)];
}

template <class T>
T __shfl_xor_sync(unsigned int mask, T value, int lane_mask, int width = 32, const char* file = __builtin_FILE(),
                  int line = __builtin_LINE()) {
  const int lane = qst::cuda_shim::LaneId();
  const int end = qst::cuda_shim::GroupStart(lane, width) + width;
  const T* all = qst::cuda_shim::Exchange(mask, value, {"__shfl_xor_sync", file, line});
  // As on a device, a lane of an earlier group may be read, one of a later group not.
  const int source = (lane ^ lane_mask) & 31;
  return source >= end ? value : all[source];
}

inline unsigned int __ballot_sync(unsigned int mask, int predicate, const char* file = __builtin_FILE(),
                                  int line = __builtin_LINE()) {
  const int* all = qst::cuda_shim::Exchange<int>(mask, predicate, {"__ballot_sync", file, line});
  unsigned int result = 0;
  for (int lane = 0; lane < 32; ++lane) {
    if ((mask >> lane & 1u) != 0 && all[lane] != 0) result |= 1u << lane;
  }
  return result;
}

inline int __any_sync(unsigned int mask, int predicate, const char* file = __builtin_FILE(),
                      int line = __builtin_LINE()) {
  return __ballot_sync(mask, predicate, file, line) != 0;
}

inline int __all_sync(unsigned int mask, int predicate, const char* file = __builtin_FILE(),
                      int line = __builtin_LINE()) {
  return __ballot_sync(mask, predicate, file, line) == mask;
}

// Lanes of the mask whose value has the same bits as the caller's.
template <class T>
unsigned int __match_any_sync(unsigned int mask, T value, const char* file = __builtin_FILE(),
                              int line = __builtin_LINE()) {
  const T* all = qst::cuda_shim::Exchange(mask, value, {"__match_any_sync", file, line});
  unsigned int result = 0;
  for (int lane = 0; lane < 32; ++lane) {
    if ((mask >> lane & 1u) != 0 && __builtin_memcmp(&all[lane], &value, sizeof(T)) == 0) result |= 1u << lane;
  }
  return result;
}

#define QST_CUDA_SHIM_REDUCE(name, type, expression)                                                                  \
  inline type name(unsigned int mask, type value, const char* file = __builtin_FILE(), int line = __builtin_LINE()) { \
    return qst::cuda_shim::ReduceLanes(mask, value, [](type a, type b) -> type { return expression; },                \
                                       {#name, file, line});                                                          \
  }

QST_CUDA_SHIM_REDUCE(__reduce_add_sync, unsigned int, a + b)
QST_CUDA_SHIM_REDUCE(__reduce_add_sync, int,
                     static_cast<int>(static_cast<unsigned int>(a) + static_cast<unsigned int>(b)))
QST_CUDA_SHIM_REDUCE(__reduce_min_sync, unsigned int, a < b ? a : b)
QST_CUDA_SHIM_REDUCE(__reduce_min_sync, int, a < b ? a : b)
QST_CUDA_SHIM_REDUCE(__reduce_max_sync, unsigned int, a < b ? b : a)
QST_CUDA_SHIM_REDUCE(__reduce_max_sync, int, a < b ? b : a)
QST_CUDA_SHIM_REDUCE(__reduce_and_sync, unsigned int, a& b)
QST_CUDA_SHIM_REDUCE(__reduce_or_sync, unsigned int, a | b)
QST_CUDA_SHIM_REDUCE(__reduce_xor_sync, unsigned int, a ^ b)
#undef QST_CUDA_SHIM_REDUCE

#endif  // QST_KERNELS_TESTING_CUDA_SHIM_INCLUDE_CUDA_SHIM_WARP_H_
