// For builds without the CUDA backend: there is no GPU, and no way to get a stream.
#include <cstdlib>

#include "kernels/cuda/device.h"
#include "kernels/cuda/stub.h"

namespace qst {
namespace cuda {

struct Device::State {};

int Device::Count() { return 0; }
absl::StatusOr<std::unique_ptr<Device>> Device::Open(const DeviceOptions&) { return NoCudaBackend(); }
Device::Device(std::unique_ptr<State> state) : state_(std::move(state)) {}
Device::~Device() = default;
const std::string& Device::name() const {
  static const std::string& none = *new std::string("none");
  return none;
}
int Device::ordinal() const { return 0; }
std::int64_t Device::memory_budget_bytes() const { return 0; }
std::int64_t Device::allocated_bytes() const { return 0; }
std::int64_t Device::peak_bytes() const { return 0; }
void Device::ResetPeak() {}
absl::Status Device::MakeCurrent() const { return NoCudaBackend(); }
absl::StatusOr<StreamPtr> Device::NewStream(const StreamOptions&) { return NoCudaBackend(); }
absl::StatusOr<StreamPtr> Device::NewTransferStream() { return NoCudaBackend(); }
absl::StatusOr<void*> Device::Allocate(std::int64_t) { return NoCudaBackend(); }
void Device::Free(void*) {}
absl::Status Device::CheckFits(std::int64_t) const { return NoCudaBackend(); }

void StreamDeleter::operator()(Stream*) const {}
// Nobody has a stream to ask about.
Device& DeviceOf(Stream&) { std::abort(); }
void* NativeHandle(Stream&) { return nullptr; }
absl::Status CopyToDevice(Stream&, const void*, std::int64_t, void*) { return NoCudaBackend(); }
absl::Status CopyToHost(Stream&, const void*, std::int64_t, void*) { return NoCudaBackend(); }
absl::Status CopyOnDevice(Stream&, const void*, std::int64_t, void*) { return NoCudaBackend(); }
absl::Status FillZero(Stream&, void*, std::int64_t) { return NoCudaBackend(); }
absl::Status Synchronize(Stream&) { return NoCudaBackend(); }

absl::StatusOr<Event> Event::Create(bool) { return NoCudaBackend(); }
Event::Event(Event&&) noexcept {}
Event& Event::operator=(Event&&) noexcept { return *this; }
Event::~Event() = default;
absl::Status Event::Record(Stream&) { return NoCudaBackend(); }
absl::Status Event::MakeWait(Stream&) const { return NoCudaBackend(); }
absl::Status Event::Synchronize() const { return NoCudaBackend(); }
absl::StatusOr<bool> Event::IsDone() const { return NoCudaBackend(); }
absl::StatusOr<double> Event::MillisecondsSince(const Event&) const { return NoCudaBackend(); }

}  // namespace cuda
}  // namespace qst
