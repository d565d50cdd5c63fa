//   bazel run --config=cuda //tests/bench:cuda_linear_bench [GPU]
#include <cstdio>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "tests/bench/cuda_linear_bench.h"

int main(int argc, char** argv) {
  int ordinal = 0;
  if (argc > 2 || (argc == 2 && !absl::SimpleAtoi(argv[1], &ordinal))) {
    std::fprintf(stderr, "usage: cuda_linear_bench [GPU]\n");
    return 2;
  }
  const absl::Status status = qst::RunCudaLinearBench(ordinal);
  if (status.ok()) return 0;
  std::fprintf(stderr, "cuda_linear_bench: %s\n", status.ToString().c_str());
  return 1;
}
