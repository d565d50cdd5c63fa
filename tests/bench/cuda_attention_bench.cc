// Speed of attention on a GPU: the backbone's, on tensor cores, and the side network's with its narrow heads, forward
// and backward. Prints a line of JSON for each: value is TFLOP/s of the products that a causal mask leaves (backward:
// five products where forward has two), ratio that by a plain bf16 product of the same run. The side network computes
// in float32's accuracy, with three or four TF32 products for one, and an exponential for every 32 operations: its
// ratio says how far it is from costing nothing, not how good the kernel is.
//
//   bazel run --config=cuda //tests/bench:cuda_attention_bench
//
// Exit status 1 without a GPU, or in a build without the backend.
#include <algorithm>
#include <cmath>
#include <cstdint>
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

ABSL_FLAG(std::int64_t, shrink, 1, "divides lengths and the size of the plain product: to try the program");

namespace qst {
namespace {

struct Case {
  const char* name;
  std::int64_t num_heads;
  std::int64_t num_kv_heads;
  std::int64_t head_dim;
  std::int64_t num_sequences;
  std::int64_t length;
  DType dtype;
  bool has_backward;
};

constexpr Case kCases[] = {
    {"backbone 7B", 32, 32, 128, 16, 512, DType::kBF16, false},
    {"backbone 7B", 32, 32, 128, 2, 4096, DType::kBF16, false},
    {"backbone 70B", 64, 8, 128, 4, 2048, DType::kBF16, false},
    {"backbone SmolLM2-135M", 9, 3, 64, 16, 512, DType::kBF16, false},
    {"side network 7B, r = 16", 32, 32, 8, 16, 512, DType::kF32, true},
    {"side network 7B, r = 16", 32, 32, 8, 2, 4096, DType::kF32, true},
    {"side network 70B, r = 16", 64, 8, 8, 4, 2048, DType::kF32, true},
    {"side network OPT-1.3B, r = 16", 32, 32, 4, 16, 512, DType::kF32, true},
};

std::int64_t Shrunk(std::int64_t n) { return std::max<std::int64_t>(8, n / absl::GetFlag(FLAGS_shrink)); }

class Bench {
 public:
  explicit Bench(CudaTimer* timer) : timer_(*timer), ctx_(timer->context()) {}

  absl::Status RunAll() {
    QST_ASSIGN_OR_RETURN(ceiling_, PlainProduct());
    std::cout << JsonLine("bf16 product", absl::StrCat(Shrunk(8192), " cubed"), ceiling_, "TFLOP/s", 1.0) << std::endl;
    for (const Case& c : kCases) QST_RETURN_IF_ERROR(RunCase(c));
    return absl::OkStatus();
  }

 private:
  absl::StatusOr<double> PlainProduct() {
    const std::int64_t n = Shrunk(8192);
    QST_ASSIGN_OR_RETURN(const DeviceMatrix x, DeviceMatrix::Create(ctx_, n, n, DType::kBF16));
    QST_ASSIGN_OR_RETURN(const DeviceMatrix w, DeviceMatrix::Create(ctx_, n, n, DType::kBF16));
    QST_ASSIGN_OR_RETURN(const DeviceMatrix y, DeviceMatrix::Create(ctx_, n, n, DType::kBF16));
    const WeightView weight = WeightView::Dense(w.view());
    QST_ASSIGN_OR_RETURN(const double milliseconds, timer_.Milliseconds([&] {
      return Linear(ctx_, x.view(), weight, ConstMatrixView(), y.view(), /*accumulate=*/false);
    }));
    return 2.0 * std::pow(static_cast<double>(n), 3) / (milliseconds * 1e9);
  }

  absl::Status RunCase(const Case& c) {
    const std::int64_t length = Shrunk(c.length);
    const std::int64_t tokens = c.num_sequences * length;
    std::vector<std::int32_t> offsets;
    for (std::int64_t s = 0; s <= c.num_sequences; ++s) offsets.push_back(static_cast<std::int32_t>(s * length));
    QST_ASSIGN_OR_RETURN(const DeviceMemory device_offsets,
                         DeviceMemory::CopyOf(ctx_, offsets.data(), static_cast<std::int64_t>(4 * offsets.size())));
    const SequenceOffsets sequences{device_offsets.as<std::int32_t>(), c.num_sequences};
    AttentionShape shape;
    shape.num_heads = c.num_heads;
    shape.num_kv_heads = c.num_kv_heads;
    shape.head_dim = c.head_dim;
    shape.scale = 1.0f / std::sqrt(static_cast<float>(c.head_dim));
    const std::int64_t q_width = c.num_heads * c.head_dim;
    const std::int64_t kv_width = c.num_kv_heads * c.head_dim;
    QST_ASSIGN_OR_RETURN(const DeviceMatrix q, DeviceMatrix::Create(ctx_, tokens, q_width, c.dtype));
    QST_ASSIGN_OR_RETURN(const DeviceMatrix k, DeviceMatrix::Create(ctx_, tokens, kv_width, c.dtype));
    QST_ASSIGN_OR_RETURN(const DeviceMatrix v, DeviceMatrix::Create(ctx_, tokens, kv_width, c.dtype));
    QST_ASSIGN_OR_RETURN(const DeviceMatrix out, DeviceMatrix::Create(ctx_, tokens, q_width, c.dtype));
    QST_ASSIGN_OR_RETURN(const DeviceMatrix sums, DeviceMatrix::Create(ctx_, tokens, c.num_heads));
    const double pairs = 0.5 * static_cast<double>(length) * static_cast<double>(length + 1);
    const double product = 2.0 * static_cast<double>(c.num_sequences * q_width) * pairs;
    const std::string size = absl::StrCat(c.num_sequences, "x", length, " tokens, heads ", c.num_heads, "/",
                                          c.num_kv_heads, "x", c.head_dim, " ", DTypeName(c.dtype));
    QST_RETURN_IF_ERROR(Report(absl::StrCat("Attention, ", c.name), size, 2.0 * product, [&] {
      return Attention(ctx_, shape, q.view(), k.view(), v.view(), sequences, sequences, out.view(), sums.data());
    }));
    if (!c.has_backward) return absl::OkStatus();
    QST_ASSIGN_OR_RETURN(const DeviceMatrix grad_out, DeviceMatrix::Create(ctx_, tokens, q_width));
    QST_ASSIGN_OR_RETURN(const DeviceMatrix grad_q, DeviceMatrix::Create(ctx_, tokens, q_width));
    QST_ASSIGN_OR_RETURN(const DeviceMatrix grad_k, DeviceMatrix::Create(ctx_, tokens, kv_width));
    QST_ASSIGN_OR_RETURN(const DeviceMatrix grad_v, DeviceMatrix::Create(ctx_, tokens, kv_width));
    return Report(absl::StrCat("AttentionBackward, ", c.name), size, 5.0 * product, [&] {
      return AttentionBackward(ctx_, shape, grad_out.view(), q.view(), k.view(), v.view(), out.view(), sums.data(),
                               sequences, grad_q.view(), grad_k.view(), grad_v.view());
    });
  }

  absl::Status Report(const std::string& name, const std::string& size, double flops,
                      const std::function<absl::Status()>& enqueue) {
    QST_ASSIGN_OR_RETURN(const double milliseconds, timer_.Milliseconds(enqueue));
    const double speed = flops / (milliseconds * 1e9);
    std::cout << JsonLine(name, size, speed, "TFLOP/s", speed / ceiling_) << std::endl;
    return absl::OkStatus();
  }

  CudaTimer& timer_;
  const OpContext ctx_;
  double ceiling_ = 0.0;
};

absl::Status Run() {
  QST_ASSIGN_OR_RETURN(const std::unique_ptr<CudaTimer> timer, CudaTimer::Open());
  return Bench(timer.get()).RunAll();
}

}  // namespace
}  // namespace qst

int main(int argc, char** argv) {
  absl::ParseCommandLine(argc, argv);
  if (absl::GetFlag(FLAGS_shrink) < 1) {
    std::cerr << "cuda_attention_bench: --shrink must be at least 1\n";
    return 2;
  }
  const absl::Status status = qst::Run();
  if (status.ok()) return 0;
  std::cerr << "cuda_attention_bench: " << status.message() << "\n";
  return 1;
}
