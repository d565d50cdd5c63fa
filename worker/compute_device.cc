#include "worker/compute_device.h"

#include <cstdlib>
#include <utility>

#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"
#include "proto/support/status_macros.h"
#include "worker/worker_memory.h"

namespace qst {

absl::Status ComputeContext::BindThread() const {
  return stream_ == nullptr ? absl::OkStatus() : cuda::DeviceOf(*stream_).MakeCurrent();
}

ComputeDevice::ComputeDevice(const ComputeDeviceOptions& options) : options_(options) {}
ComputeDevice::~ComputeDevice() = default;

absl::StatusOr<std::unique_ptr<ComputeDevice>> ComputeDevice::Open(const ComputeDeviceOptions& options) {
  auto device = absl::WrapUnique(new ComputeDevice(options));
  if (options.gpu.has_value()) {
    // Before CUDA looks at it. Streams share so many queues, 8 unless said: a receive of NCCL that waits for its peer
    // would keep whatever came into the same queue after it. Parts and edges of a plan have more streams than 8 between
    // them.
    ::setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", /*overwrite=*/0);
    cuda::DeviceOptions gpu;
    gpu.ordinal = *options.gpu;
    gpu.memory_budget_bytes = options.gpu_memory_bytes;
    QST_ASSIGN_OR_RETURN(device->gpu_, cuda::Device::Open(gpu));
    device->id_ = absl::StrCat("cuda:", gpu.ordinal);
  } else {
    device->threads_ = std::make_unique<ThreadPool>(options.num_threads);
  }
  return device;
}

absl::StatusOr<std::unique_ptr<ComputeContext>> ComputeDevice::NewContext(bool allow_tf32) {
  OpContext ops;
  if (!is_cuda()) {
    ops.threads = threads_.get();
    ops.isa = options_.isa;
    return absl::WrapUnique(new ComputeContext(ops, nullptr));
  }
  cuda::StreamOptions options;
  options.allow_tf32 = allow_tf32;
  QST_ASSIGN_OR_RETURN(cuda::StreamPtr stream, gpu_->NewStream(options));
  ops.device = DeviceType::kCuda;
  ops.stream = stream.get();
  return absl::WrapUnique(new ComputeContext(ops, std::move(stream)));
}

absl::Status ComputeDevice::Reserve(const std::string& part, std::int64_t num_bytes, absl::string_view what) {
  if (!is_cuda()) return absl::OkStatus();
  absl::MutexLock lock(&mutex_);
  reserved_.erase(part);
  std::int64_t others = 0;
  for (const auto& [name, bytes] : reserved_) others += bytes;
  if (others + num_bytes > gpu_memory_bytes()) {
    return absl::ResourceExhaustedError(absl::StrCat(
        gpu_name(), ": ", FormatBytes(num_bytes), " are needed (", what, "), ",
        FormatBytes(gpu_memory_bytes() - others), " are left of the budget of ", FormatBytes(gpu_memory_bytes()),
        "; use more stages, fewer tokens a pass, or a larger --device_memory"));
  }
  reserved_[part] = num_bytes;
  return absl::OkStatus();
}

void ComputeDevice::Unreserve(const std::string& part) {
  absl::MutexLock lock(&mutex_);
  reserved_.erase(part);
}

void ComputeDevice::ResetPeak() {
  if (is_cuda()) gpu_->ResetPeak();
}

std::string ComputeDevice::DescribeMemory() const {
  if (!is_cuda()) return "";
  return absl::StrCat("peak ", FormatBytes(gpu_->peak_bytes()), " of budget ", FormatBytes(gpu_memory_bytes()), " on ",
                      id_);
}

}  // namespace qst
