// Stand-in for CUDA's cuda_runtime.h: the subset of the runtime API and of the device language that this project uses,
// for a plain C++17 compiler. Kernels run on the CPU; see ../README.md.
#ifndef QST_KERNELS_TESTING_CUDA_SHIM_INCLUDE_CUDA_RUNTIME_H_
#define QST_KERNELS_TESTING_CUDA_SHIM_INCLUDE_CUDA_RUNTIME_H_

#include "cuda_shim/annotations.h"
#include "cuda_shim/block.h"
#include "cuda_shim/intrinsics.h"
#include "cuda_shim/launch.h"
#include "cuda_shim/runtime_api.h"
#include "cuda_shim/vector_types.h"
#include "cuda_shim/warp.h"

#endif  // QST_KERNELS_TESTING_CUDA_SHIM_INCLUDE_CUDA_RUNTIME_H_
