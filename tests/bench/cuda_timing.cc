#include "tests/bench/cuda_timing.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "absl/strings/str_format.h"
#include "kernels/device_memory.h"
#include "proto/support/status_macros.h"

namespace qst {
namespace {

constexpr int kRounds = 9;
constexpr double kMinMilliseconds = 2.0;
// Also of work so short that the events' own time would show.
constexpr std::int64_t kMaxCalls = 1000;

}  // namespace

absl::StatusOr<std::unique_ptr<CudaTimer>> CudaTimer::Open() {
  std::unique_ptr<CudaTimer> timer(new CudaTimer);
  QST_ASSIGN_OR_RETURN(timer->device_, cuda::Device::Open(cuda::DeviceOptions()));
  QST_ASSIGN_OR_RETURN(timer->stream_, timer->device_->NewStream());
  timer->context_.device = DeviceType::kCuda;
  timer->context_.stream = timer->stream_.get();
  return timer;
}

absl::StatusOr<double> CudaTimer::MillisecondsOfCalls(const std::function<absl::Status()>& enqueue,
                                                      std::int64_t calls) {
  QST_ASSIGN_OR_RETURN(cuda::Event begin, cuda::Event::Create(/*is_timed=*/true));
  QST_ASSIGN_OR_RETURN(cuda::Event end, cuda::Event::Create(/*is_timed=*/true));
  QST_RETURN_IF_ERROR(begin.Record(*stream_));
  for (std::int64_t i = 0; i < calls; ++i) QST_RETURN_IF_ERROR(enqueue());
  QST_RETURN_IF_ERROR(end.Record(*stream_));
  QST_RETURN_IF_ERROR(cuda::Synchronize(*stream_));
  return end.MillisecondsSince(begin);
}

absl::StatusOr<double> CudaTimer::Milliseconds(const std::function<absl::Status()>& enqueue) {
  // The first call loads the kernel and makes scratch memory; the second says how long one takes.
  QST_RETURN_IF_ERROR(MillisecondsOfCalls(enqueue, 1).status());
  QST_ASSIGN_OR_RETURN(const double one, MillisecondsOfCalls(enqueue, 1));
  const std::int64_t calls = std::clamp<std::int64_t>(
      static_cast<std::int64_t>(std::ceil(kMinMilliseconds / std::max(one, 1e-6))), 1, kMaxCalls);
  std::vector<double> rounds(kRounds);
  for (double& round : rounds) {
    QST_ASSIGN_OR_RETURN(round, MillisecondsOfCalls(enqueue, calls));
    round /= static_cast<double>(calls);
  }
  std::nth_element(rounds.begin(), rounds.begin() + kRounds / 2, rounds.end());
  return rounds[kRounds / 2];
}

absl::StatusOr<double> CudaTimer::CopyBandwidth() {
  const std::int64_t bytes = std::min<std::int64_t>(1 << 30, device_->memory_budget_bytes() / 4);
  QST_ASSIGN_OR_RETURN(DeviceMemory from, DeviceMemory::Allocate(context_, bytes));
  QST_ASSIGN_OR_RETURN(DeviceMemory to, DeviceMemory::Allocate(context_, bytes));
  QST_RETURN_IF_ERROR(FillZero(context_, from.data(), bytes));
  QST_ASSIGN_OR_RETURN(const double milliseconds,
                       Milliseconds([&] { return CopyBytes(context_, from.data(), bytes, to.data()); }));
  return 2.0 * static_cast<double>(bytes) / (milliseconds * 1e6);
}

std::string JsonLine(absl::string_view name, absl::string_view shape, double value, absl::string_view unit,
                     double ratio) {
  return absl::StrFormat("{\"name\": \"%s\", \"shape\": \"%s\", \"value\": %.6g, \"unit\": \"%s\", \"ratio\": %s}",
                         name, shape, value, unit, ratio < 0.0 ? "null" : absl::StrFormat("%.4f", ratio));
}

}  // namespace qst
