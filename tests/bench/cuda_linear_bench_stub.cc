#include "absl/status/status.h"
#include "tests/bench/cuda_linear_bench.h"

namespace qst {

absl::Status RunCudaLinearBench(int) {
  return absl::UnimplementedError("this build has no CUDA backend; build with --config=cuda");
}

}  // namespace qst
