// CUDA's declaration specifiers for a plain C++ compiler.
#ifndef QST_KERNELS_TESTING_CUDA_SHIM_INCLUDE_CUDA_SHIM_ANNOTATIONS_H_
#define QST_KERNELS_TESTING_CUDA_SHIM_INCLUDE_CUDA_SHIM_ANNOTATIONS_H_

// The standard library spells an attribute __noinline__, too: it has to be read before the macro below exists.
#include <memory>

#define __host__
#define __device__
#define __global__
#define __constant__
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __forceinline__ __inline__ __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))

// Blocks run one after the other, so one copy per kernel (and per instantiation of a kernel template) does for all.
#define __shared__ static

#endif  // QST_KERNELS_TESTING_CUDA_SHIM_INCLUDE_CUDA_SHIM_ANNOTATIONS_H_
