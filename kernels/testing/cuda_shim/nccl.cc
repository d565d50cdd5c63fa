// NCCL's functions over a socket. As on a device, and so that misuse shows:
//   - a communicator that was made non-blocking is used only by way of ncclInProgress: what was launched reaches its
//   stream
//     at the last moment, when the poll that says ncclSuccess is made, and no call is taken before;
//   - the first launch is over when the peer has launched something, too;
//   - a send waits for the receive that it meets, a receive for its message; both for ever, unless aborted, if the peer
//   is
//     gone;
//   - operations of one communicator follow each other, on whichever streams they are.
// A message of another size than its receive is reported (ncclInvalidUsage), which NCCL does not do; a peer that has
// gone is, as NCCL does for peers over a network (ncclRemoteError). QST_CUDA_SHIM_NCCL_ERROR=number: every communicator
// reports that. A group goes in one direction on one communicator. Ranks may share a device.
#include <nccl.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "kernels/testing/cuda_shim/device.h"
#include "kernels/testing/cuda_shim/memory.h"
#include "kernels/testing/cuda_shim/nccl_channel.h"
#include "kernels/testing/cuda_shim/stream.h"

namespace qst::cuda_shim {
namespace {

// How many times a launch is reported to be in progress.
constexpr int kPollsUntilLaunched = 2;

struct Operation {
  ncclComm_t comm = nullptr;
  bool is_send = false;
  void* buffer = nullptr;
  std::size_t size = 0;
  cudaStream_t stream = nullptr;
};

struct Group {
  int depth = 0;
  std::vector<Operation> operations;
};
thread_local Group group;

std::string& LastError() {
  thread_local std::string text;
  return text;
}

ncclResult_t Refuse(ncclResult_t result, const std::string& why) {
  LastError() = why;
  return result;
}

}  // namespace
}  // namespace qst::cuda_shim

struct ncclComm {
  std::shared_ptr<qst::cuda_shim::NcclChannel> channel;
  int rank = 0;
  int device = 0;
  bool is_blocking = true;
  bool has_launched = false;
  bool is_finalizing = false;
  std::vector<qst::cuda_shim::Operation> launching;
  int polls_left = 0;
  cudaEvent_t last = nullptr;  // behind the last operation
};

namespace qst::cuda_shim {
namespace {

ncclResult_t Add(const Operation& operation) {
  const std::shared_ptr<NcclChannel> channel = operation.comm->channel;
  cudaError_t error = cudaSuccess;
  if (operation.is_send) {
    error = Enqueue(
        operation.stream, StreamUse::kOwnDevice,
        [channel, operation] { channel->Send(operation.buffer, operation.size); },
        [channel] { return channel->is_aborted() || channel->MaySend(); });
  } else {
    const auto has_begun = std::make_shared<std::atomic<bool>>(false);
    error = Enqueue(
        operation.stream, StreamUse::kOwnDevice,
        [channel, operation] { channel->Receive(operation.buffer, operation.size); },
        [channel, has_begun] {
          if (!has_begun->exchange(true)) channel->GrantSend();
          return channel->is_aborted() || channel->HasMessage();
        });
  }
  return error == cudaSuccess ? ncclSuccess : Refuse(ncclUnhandledCudaError, cudaGetErrorString(error));
}

// Puts into its stream what was launched.
ncclResult_t EnqueueLaunched(ncclComm_t comm) {
  const cudaStream_t stream = comm->launching.front().stream;
  cudaStreamWaitEvent(stream, comm->last);
  for (const Operation& operation : comm->launching) {
    if (const ncclResult_t result = Add(operation); result != ncclSuccess) return result;
  }
  comm->launching.clear();
  const cudaError_t error = cudaEventRecord(comm->last, stream);
  return error == cudaSuccess ? ncclSuccess : Refuse(ncclUnhandledCudaError, cudaGetErrorString(error));
}

// What the communicator would say of itself if nothing were in progress.
ncclResult_t Failure(ncclComm_t comm) {
  if (const char* wanted = std::getenv("QST_CUDA_SHIM_NCCL_ERROR"); wanted != nullptr && *wanted != '\0') {
    return Refuse(static_cast<ncclResult_t>(std::atoi(wanted)), "QST_CUDA_SHIM_NCCL_ERROR");
  }
  if (comm->channel->has_wrong_size()) {
    return Refuse(ncclInvalidUsage, "a message has another size than its receive");
  }
  if (comm->channel->state() == NcclChannel::State::kLost && !comm->channel->peer_has_finalized()) {
    return Refuse(ncclRemoteError, "the peer's socket was closed");
  }
  return ncclSuccess;
}

ncclResult_t Poll(ncclComm_t comm) {
  if (comm->channel->state() == NcclChannel::State::kConnecting) return ncclInProgress;
  if (const ncclResult_t failure = Failure(comm); failure != ncclSuccess) return failure;
  if (!comm->launching.empty()) {
    if (comm->polls_left-- > 0 || !comm->channel->peer_has_launched()) return ncclInProgress;
    return EnqueueLaunched(comm);
  }
  if (comm->is_finalizing && cudaEventQuery(comm->last) != cudaSuccess) return ncclInProgress;
  return ncclSuccess;
}

// For calls that may not overtake what is in progress.
ncclResult_t CheckReady(ncclComm_t comm, const char* call) {
  if (comm == nullptr) return Refuse(ncclInvalidArgument, std::string(call) + ": no communicator");
  if (comm->channel->state() == NcclChannel::State::kConnecting || !comm->launching.empty()) {
    return Refuse(ncclInvalidArgument, std::string(call) + ": the call before is still in progress");
  }
  return Failure(comm);
}

// The state after a call: at once for non-blocking communicators, else when nothing is in progress any more.
ncclResult_t Settle(ncclComm_t comm) {
  if (!comm->is_blocking) return ncclInProgress;
  for (;;) {
    const ncclResult_t result = Poll(comm);
    if (result != ncclInProgress) return result;
    std::this_thread::yield();
  }
}

ncclResult_t EndGroup() {
  if (--group.depth > 0) return ncclSuccess;
  std::vector<Operation> operations = std::move(group.operations);
  group.operations.clear();
  if (operations.empty()) return ncclSuccess;
  const Operation& first = operations.front();
  for (const Operation& other : operations) {
    if (other.comm != first.comm || other.stream != first.stream || other.is_send != first.is_send) {
      return Refuse(ncclInvalidUsage, "the shim's groups go in one direction on one communicator and stream");
    }
  }
  ncclComm_t comm = first.comm;
  comm->launching = std::move(operations);
  comm->polls_left = kPollsUntilLaunched;
  if (!comm->has_launched) comm->channel->SayLaunched();
  comm->has_launched = true;
  return Settle(comm);
}

ncclResult_t AddToGroup(const char* call, const Operation& operation, ncclDataType_t type, int peer) {
  if (const ncclResult_t result = CheckReady(operation.comm, call); result != ncclSuccess) return result;
  if (operation.comm->is_finalizing) return Refuse(ncclInvalidUsage, std::string(call) + " after ncclCommFinalize");
  if (peer != 1 - operation.comm->rank || type != ncclUint8) {
    return Refuse(ncclInvalidArgument, std::string(call) + ": the shim sends ncclUint8 to the other of two ranks");
  }
  const MemoryRange range = FindMemory(operation.buffer);
  if (operation.size > 0 && (range.kind != MemoryKind::kDevice || range.bytes_left < operation.size)) {
    return Refuse(ncclInvalidArgument, std::string(call) + ": the buffer is not within device memory");
  }
  ++group.depth;
  group.operations.push_back(operation);
  return EndGroup();
}

void Delete(ncclComm_t comm) {
  comm->channel->Abort();
  cudaEventDestroy(comm->last);
  delete comm;
}

}  // namespace
}  // namespace qst::cuda_shim

using namespace qst::cuda_shim;  // NOLINT: the API's functions have no namespace

ncclResult_t ncclGetVersion(int* version) {
  if (version == nullptr) return ncclInvalidArgument;
  *version = NCCL_VERSION_CODE;
  return ncclSuccess;
}

ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  static std::atomic<unsigned> next{0};
  if (id == nullptr) return ncclInvalidArgument;
  std::memset(id, 0, sizeof(*id));
  std::snprintf(id->internal, sizeof(id->internal), "qst-nccl-%d-%u", static_cast<int>(getpid()), next++);
  return ncclSuccess;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t* comm, int num_ranks, ncclUniqueId id, int rank, ncclConfig_t* config) {
  if (comm == nullptr || num_ranks != 2 || rank < 0 || rank > 1) {
    return Refuse(ncclInvalidArgument, "ncclCommInitRankConfig: the shim's communicators have two ranks");
  }
  if (config != nullptr && (config->magic != 0xcafebeef || config->size != sizeof(ncclConfig_t))) {
    return Refuse(ncclInvalidArgument, "ncclCommInitRankConfig: the config was not initialized");
  }
  auto made = std::make_unique<ncclComm>();
  made->rank = rank;
  made->device = CurrentDevice();
  made->is_blocking = config == nullptr || config->blocking != 0;
  if (cudaEventCreateWithFlags(&made->last, cudaEventDisableTiming) != cudaSuccess) return ncclUnhandledCudaError;
  made->channel =
      std::make_shared<NcclChannel>(std::string(id.internal, strnlen(id.internal, sizeof(id.internal))), rank);
  *comm = made.release();
  return Settle(*comm);
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t* error) {
  if (comm == nullptr || error == nullptr) return ncclInvalidArgument;
  *error = Poll(comm);
  return ncclSuccess;
}

ncclResult_t ncclCommFinalize(ncclComm_t comm) {
  if (const ncclResult_t result = CheckReady(comm, "ncclCommFinalize"); result != ncclSuccess) return result;
  comm->is_finalizing = true;
  comm->channel->SayFinalized();
  return Settle(comm);
}

ncclResult_t ncclCommDestroy(ncclComm_t comm) {
  if (const ncclResult_t result = CheckReady(comm, "ncclCommDestroy"); result != ncclSuccess) return result;
  if (!comm->is_finalizing) comm->channel->SayFinalized();
  cudaEventSynchronize(comm->last);
  Delete(comm);
  return ncclSuccess;
}

ncclResult_t ncclCommAbort(ncclComm_t comm) {
  if (comm != nullptr) Delete(comm);
  return ncclSuccess;
}

ncclResult_t ncclSend(const void* buffer, std::size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
  return AddToGroup("ncclSend", {comm, true, const_cast<void*>(buffer), count, stream}, type, peer);
}

ncclResult_t ncclRecv(void* buffer, std::size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
  return AddToGroup("ncclRecv", {comm, false, buffer, count, stream}, type, peer);
}

ncclResult_t ncclGroupStart() {
  ++group.depth;
  return ncclSuccess;
}

ncclResult_t ncclGroupEnd() {
  if (group.depth == 0) return Refuse(ncclInvalidUsage, "ncclGroupEnd without ncclGroupStart");
  return EndGroup();
}

const char* ncclGetErrorString(ncclResult_t result) {
  switch (result) {
    case ncclSuccess:
      return "no error";
    case ncclUnhandledCudaError:
      return "unhandled cuda error";
    case ncclSystemError:
      return "unhandled system error";
    case ncclInternalError:
      return "internal error";
    case ncclInvalidArgument:
      return "invalid argument";
    case ncclInvalidUsage:
      return "invalid usage";
    case ncclRemoteError:
      return "remote process exited or there was a network error";
    case ncclInProgress:
      return "NCCL operation in progress";
  }
  return "unknown result code";
}

const char* ncclGetLastError(ncclComm_t) { return LastError().c_str(); }
