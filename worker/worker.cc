#include "worker/worker.h"

#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <unistd.h>

#include <random>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "proto/qst/v1/control.grpc.pb.h"
#include "worker/compute_device.h"
#include "worker/host.h"
#include "worker/worker_address.h"
#include "worker/worker_memory.h"
#include "worker/worker_rendezvous.h"
#include "worker/worker_reports.h"
#include "worker/worker_session.h"

namespace qst {
namespace {

// Specs and metrics lines are small; label lists may be long.
constexpr int kMaxMessageBytes = 64 << 20;

std::shared_ptr<grpc::Channel> OpenChannel(const std::string& target) {
  grpc::ChannelArguments arguments;
  // A coordinator that comes back is found at once. (The minimum is the time that one attempt has.)
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 5000);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000);
  // A coordinator's host that vanishes without a word is noticed within 15 s. The coordinator permits pings from 5 s
  // on.
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 10000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 5000);
  // Coordinators are inside the cluster, proxies lead out of it.
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  arguments.SetMaxReceiveMessageSize(kMaxMessageBytes);
  arguments.SetMaxSendMessageSize(kMaxMessageBytes);
  return grpc::CreateCustomChannel(target, grpc::InsecureChannelCredentials(), arguments);
}

std::string RandomIncarnation() {
  std::random_device device;
  return absl::StrFormat("%08x%08x", device(), device());
}

}  // namespace

struct Worker::State {
  State(const WorkerOptions& worker_options, std::unique_ptr<ComputeDevice> compute_device)
      : options(worker_options),
        incarnation(RandomIncarnation()),
        device(std::move(compute_device)),
        channel(OpenChannel(options.coordinator)),
        stub(v1::WorkerControl::NewStub(channel)),
        // Last: what the process uses with all this in place is what it uses when idle.
        memory(ReadProcessMemory().resident_bytes) {
    PartContext context;
    context.worker_id = options.id;
    context.device = device.get();
    context.data_address = options.data_address;
    context.make_store = [this](const std::string& plan_id) {
      return std::make_unique<CoordinatorKeyValueStore>(stub.get(), plan_id);
    };
    context.reports = &reports;
    context.memory = &memory;
    host = std::make_unique<Host>(std::move(context), MakePart);

    WorkerSessionOptions session_options;
    session_options.coordinator = options.coordinator;
    WorkerSessionCallbacks callbacks;
    callbacks.hello = [this] { return MakeHello(); };
    callbacks.heartbeat = [this] {
      const ProcessMemory process = ReadProcessMemory();
      v1::Heartbeat heartbeat;
      heartbeat.set_resident_bytes(static_cast<std::uint64_t>(process.resident_bytes));
      heartbeat.set_peak_resident_bytes(static_cast<std::uint64_t>(process.peak_bytes));
      heartbeat.set_budget_bytes(static_cast<std::uint64_t>(memory.total_bytes()));
      return heartbeat;
    };
    callbacks.command = [this](const v1::WorkerCommand& command) { host->Handle(command); };
    session = std::make_unique<WorkerSession>(channel, &reports, std::move(callbacks), std::move(session_options));
  }

  v1::Hello MakeHello() const {
    v1::Hello hello;
    hello.set_worker_id(options.id);
    hello.set_incarnation(incarnation);
    hello.set_device(device->id());
    hello.set_device_name(device->gpu_name());
    hello.set_device_memory_bytes(static_cast<std::uint64_t>(device->gpu_memory_bytes()));
    hello.set_host(MachineName());
    hello.set_pid(getpid());
    hello.set_num_threads(static_cast<std::uint32_t>(device->num_threads()));
    hello.set_memory_bytes(static_cast<std::uint64_t>(MachineMemoryBytes()));
    for (const v1::HostedPart& part : host->Hosted()) *hello.add_hosted() = part;
    hello.set_store_path(options.store);
    return hello;
  }

  const WorkerOptions options;
  const std::string incarnation;
  const std::unique_ptr<ComputeDevice> device;
  std::shared_ptr<grpc::Channel> channel;
  std::unique_ptr<v1::WorkerControl::Stub> stub;
  MemoryBudget memory;
  WorkerReports reports;
  std::unique_ptr<Host> host;
  std::unique_ptr<WorkerSession> session;
};

Worker::Worker(const WorkerOptions& options, std::unique_ptr<ComputeDevice> device)
    : state_(std::make_unique<State>(options, std::move(device))) {}
Worker::~Worker() = default;

absl::Status Worker::Run() {
  const absl::Status status = state_->session->Run();
  state_->host->Shutdown(absl::CancelledError(absl::StrCat("worker ", state_->options.id, " ends")));
  return status;
}

void Worker::Stop() { state_->session->Stop(); }

}  // namespace qst
