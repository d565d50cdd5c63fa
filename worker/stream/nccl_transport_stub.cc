// For builds without CUDA: there is no way to get a transport.
#include "absl/status/status.h"
#include "worker/stream/nccl_transport.h"

namespace qst {
namespace {

absl::Status NoNccl() { return absl::UnimplementedError("this build has no NCCL; build with --config=cuda"); }

}  // namespace

class NcclTransport::Impl {};

absl::StatusOr<std::unique_ptr<NcclTransport>> NcclTransport::Create(std::unique_ptr<Transport>, NcclOptions) {
  return NoNccl();
}
NcclTransport::~NcclTransport() = default;
absl::Status NcclTransport::Connect() { return NoNccl(); }
std::string NcclTransport::Describe() const { return ""; }
int NcclTransport::rank() const { return 0; }
int NcclTransport::world_size() const { return 0; }
absl::Status NcclTransport::Send(int, Tag, SharedBuffer) { return NoNccl(); }
absl::StatusOr<std::unique_ptr<PendingReceive>> NcclTransport::Receive(int, Tag, std::int64_t) { return NoNccl(); }
bool NcclTransport::CarriesDeviceMemory(int) const { return false; }
absl::StatusOr<std::unique_ptr<PendingReceive>> NcclTransport::ReceiveOnDevice(int, Tag, std::int64_t) {
  return NoNccl();
}
void NcclTransport::KeepNoBuffers() {}
void NcclTransport::Abort(const absl::Status&) {}
absl::Status NcclTransport::Close(absl::Duration, const std::string&) { return NoNccl(); }
std::vector<std::string> NcclTransport::PeerNotes() const { return {}; }
absl::Status NcclTransport::status() const { return NoNccl(); }
void NcclTransport::OnFailure(std::function<void(const absl::Status&)>) {}

}  // namespace qst
