// Bandwidth of the CUDA ops that are bound by memory, at the shapes of a 7B model and its side network. Prints a line
// of JSON for each: value is GB/s (1e9) of the bytes that the op must move at least, ratio that by what a plain copy on
// the device reads and writes in the same run.
//
//   bazel run --config=cuda //tests/bench:cuda_ops_bench
//
// Exit status 1 without a GPU, or in a build without the backend.
#include <algorithm>
#include <cstdint>
#include <functional>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/device_memory.h"
#include "kernels/ops.h"
#include "proto/support/status_macros.h"
#include "tests/bench/cuda_timing.h"
#include "tests/bench/device_matrix.h"

ABSL_FLAG(std::int64_t, shrink, 1, "divides every number of rows: to try the program where no speed is measured");

namespace qst {
namespace {

class Bench {
 public:
  Bench(CudaTimer* timer, double copy_bandwidth) : timer_(*timer), ctx_(timer->context()), ceiling_(copy_bandwidth) {}

  absl::Status RunAll() {
    QST_RETURN_IF_ERROR(Norm());
    QST_RETURN_IF_ERROR(Glu());
    QST_RETURN_IF_ERROR(Cast());
    QST_RETURN_IF_ERROR(Turn());
    QST_RETURN_IF_ERROR(Loss());
    return Step();
  }

 private:
  static std::int64_t Shrunk(std::int64_t rows) {
    return std::max<std::int64_t>(1, rows / absl::GetFlag(FLAGS_shrink));
  }

  absl::Status Report(const char* name, const std::string& shape, std::int64_t bytes,
                      const std::function<absl::Status()>& enqueue) {
    QST_ASSIGN_OR_RETURN(const double milliseconds, timer_.Milliseconds(enqueue));
    const double bandwidth = static_cast<double>(bytes) / (milliseconds * 1e6);
    std::cout << JsonLine(name, shape, bandwidth, "GB/s", bandwidth / ceiling_) << std::endl;
    return absl::OkStatus();
  }

  // The residual stream to a layer's input.
  absl::Status Norm() {
    const std::int64_t rows = Shrunk(8192), d = 4096;
    QST_ASSIGN_OR_RETURN(const DeviceMatrix x, DeviceMatrix::Create(ctx_, rows, d));
    QST_ASSIGN_OR_RETURN(const DeviceMatrix weight, DeviceMatrix::Create(ctx_, 1, d));
    QST_ASSIGN_OR_RETURN(const DeviceMatrix y, DeviceMatrix::Create(ctx_, rows, d, DType::kBF16));
    return Report("RmsNorm", absl::StrCat(rows, "x", d, " f32 to bf16"), rows * d * 6,
                  [&] { return RmsNorm(ctx_, x.view(), weight.view(), 1e-5f, y.view(), nullptr); });
  }

  absl::Status Glu() {
    const std::int64_t rows = Shrunk(8192), d = 11008;
    QST_ASSIGN_OR_RETURN(const DeviceMatrix gate, DeviceMatrix::Create(ctx_, rows, d, DType::kBF16));
    QST_ASSIGN_OR_RETURN(const DeviceMatrix up, DeviceMatrix::Create(ctx_, rows, d, DType::kBF16));
    // Not in place: each call would make the gates smaller, down to subnormal numbers.
    QST_ASSIGN_OR_RETURN(const DeviceMatrix y, DeviceMatrix::Create(ctx_, rows, d, DType::kBF16));
    return Report("SwiGlu", absl::StrCat(rows, "x", d, " bf16"), rows * d * 6,
                  [&] { return SwiGlu(ctx_, gate.view(), up.view(), y.view()); });
  }

  // A layer's hidden states into the wire type.
  absl::Status Cast() {
    const std::int64_t rows = Shrunk(8192), d = 4096;
    QST_ASSIGN_OR_RETURN(const DeviceMatrix x, DeviceMatrix::Create(ctx_, rows, d));
    QST_ASSIGN_OR_RETURN(const DeviceMatrix y, DeviceMatrix::Create(ctx_, rows, d, DType::kBF16));
    return Report("AddInto", absl::StrCat(rows, "x", d, " f32 to bf16"), rows * d * 6,
                  [&] { return AddInto(ctx_, x.view(), y.view(), /*accumulate=*/false); });
  }

  absl::Status Turn() {
    const std::int64_t rows = Shrunk(8192), heads = 32, head_dim = 128;
    QST_ASSIGN_OR_RETURN(const DeviceMatrix x, DeviceMatrix::Create(ctx_, rows, heads * head_dim, DType::kBF16));
    QST_ASSIGN_OR_RETURN(const DeviceMatrix inv_freq, DeviceMatrix::Create(ctx_, 1, head_dim / 2));
    std::vector<std::int32_t> host_positions(rows);
    for (std::int64_t i = 0; i < rows; ++i) host_positions[i] = static_cast<std::int32_t>(i % 2048);
    QST_ASSIGN_OR_RETURN(const DeviceMemory positions,
                         DeviceMemory::CopyOf(ctx_, host_positions.data(), rows * std::int64_t{sizeof(std::int32_t)}));
    return Report("Rotary", absl::StrCat(rows, "x", heads, "x", head_dim, " bf16"), rows * heads * head_dim * 4, [&] {
      return Rotary(ctx_, x.view(), heads, positions.as<std::int32_t>(), inv_freq.data(), /*inverse=*/false);
    });
  }

  // With the gradient, in place. Each call takes what the one before left, which takes as long.
  absl::Status Loss() {
    const std::int64_t rows = Shrunk(512), vocabulary = 32000;
    QST_ASSIGN_OR_RETURN(const DeviceMatrix logits, DeviceMatrix::Create(ctx_, rows, vocabulary));
    QST_ASSIGN_OR_RETURN(const DeviceMatrix losses, DeviceMatrix::Create(ctx_, 1, rows));
    QST_ASSIGN_OR_RETURN(DeviceMemory targets, DeviceMemory::Allocate(ctx_, rows * std::int64_t{sizeof(std::int32_t)}));
    QST_RETURN_IF_ERROR(FillZero(ctx_, targets.data(), targets.size_bytes()));
    return Report("CrossEntropy", absl::StrCat(rows, "x", vocabulary, " f32, with gradient"), rows * vocabulary * 8,
                  [&] {
                    return CrossEntropy(ctx_, logits.view(), targets.as<std::int32_t>(), 1e-3f, /*want_grad=*/true,
                                        losses.data(), nullptr);
                  });
  }

  absl::Status Step() {
    const std::int64_t n = Shrunk(30'000'000);
    QST_ASSIGN_OR_RETURN(const DeviceMatrix param, DeviceMatrix::Create(ctx_, 1, n));
    QST_ASSIGN_OR_RETURN(const DeviceMatrix grad, DeviceMatrix::Create(ctx_, 1, n));
    QST_ASSIGN_OR_RETURN(DeviceMemory moments, DeviceMemory::Allocate(ctx_, 2 * n * std::int64_t{sizeof(float)}));
    QST_RETURN_IF_ERROR(FillZero(ctx_, moments.data(), moments.size_bytes()));
    QST_ASSIGN_OR_RETURN(DeviceMemory sum, DeviceMemory::Allocate(ctx_, sizeof(double)));
    QST_RETURN_IF_ERROR(Report("SumOfSquares", absl::StrCat(n, " f32"), n * 4,
                               [&] { return SumOfSquares(ctx_, grad.data(), n, sum.as<double>()); }));
    AdamWParams params;
    params.learning_rate = 1e-4f;
    params.weight_decay = 0.01f;
    params.sum_of_squares = sum.as<double>();
    params.clip_norm = 1.0;
    return Report("AdamW", absl::StrCat(n, " f32, clipped"), n * 28, [&] {
      return AdamW(ctx_, params, n, param.data(), grad.data(), moments.as<float>(), moments.as<float>() + n);
    });
  }

  CudaTimer& timer_;
  const OpContext ctx_;
  const double ceiling_;
};

absl::Status Run() {
  QST_ASSIGN_OR_RETURN(const std::unique_ptr<CudaTimer> timer, CudaTimer::Open());
  QST_ASSIGN_OR_RETURN(const double copy_bandwidth, timer->CopyBandwidth());
  std::cout << JsonLine("copy", timer->device_name(), copy_bandwidth, "GB/s", 1.0) << std::endl;
  return Bench(timer.get(), copy_bandwidth).RunAll();
}

}  // namespace
}  // namespace qst

int main(int argc, char** argv) {
  absl::ParseCommandLine(argc, argv);
  if (absl::GetFlag(FLAGS_shrink) < 1) {
    std::cerr << "cuda_ops_bench: --shrink must be at least 1\n";
    return 2;
  }
  const absl::Status status = qst::Run();
  if (status.ok()) return 0;
  std::cerr << "cuda_ops_bench: " << status.message() << "\n";
  return 1;
}
