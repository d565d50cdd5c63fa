// The workers: who is there, since when nothing was heard, and what each is doing.
//
// A worker's life:
//
//   hello ──▶ connected ──(stream closed)──▶ suspect ──(same process says hello)──▶ connected
//                 │                             │
//                 └──(lease over)──▶ lost ◀─────┴──(reconnect_grace over, or another process took its id)
//
// One thing at a time: a worker is idle, or hosts parts of one plan, or releases them, or imports a model.
#ifndef QST_SERVER_WORKER_REGISTRY_H_
#define QST_SERVER_WORKER_REGISTRY_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "proto/qst/v1/control.pb.h"
#include "server/executor.h"
#include "server/placement.h"

namespace qst {

// The way down to a worker: one session. Send never blocks; what cannot be sent is dropped with the session.
class WorkerLink {
 public:
  virtual ~WorkerLink() = default;
  virtual void Send(const v1::WorkerCommand& command) = 0;
  // Ends the session with this status.
  virtual void Close(const absl::Status& status) = 0;
};

struct WorkerRegistryOptions {
  // Without a report for so long a worker is lost.
  absl::Duration lease = absl::Seconds(10);
  // After its stream broke, it has so long to come back.
  absl::Duration reconnect_grace = absl::Seconds(5);
  // A worker that does not report a part as released for so long is taken as free.
  absl::Duration release_grace = absl::Seconds(10);
};

// Lives on the control loop.
class WorkerRegistry {
 public:
  struct Events {
    // Capacity may have changed: something that waits may fit now.
    std::function<void()> on_change;
    // It had `plan_id` or was importing `model` (either may be empty). `description` says who and why:
    // "worker w2 (pid 123, host x)", "connection closed".
    std::function<void(const std::string& worker_id, const std::string& plan_id, const std::string& model,
                       const std::string& reason)>
        on_lost;
  };
  struct Counts {
    std::uint32_t registered = 0;
    std::uint32_t busy = 0;
  };
  enum class HelloKind { kNew, kReturned };

  WorkerRegistry(Executor* executor, WorkerRegistryOptions options);

  void SetEvents(Events events) { events_ = std::move(events); }

  // Takes a worker in and sends Welcome. kReturned: the same process as before, with all that was known of it.
  // kAlreadyExists: another process with this id is connected. kInvalidArgument: no id or incarnation.
  absl::StatusOr<HelloKind> Connect(const v1::Hello& hello, std::shared_ptr<WorkerLink> link);
  // The stream of this link ended. Ignored unless it is the worker's present one.
  void Disconnect(const std::string& worker_id, const WorkerLink* link);
  // Ends the worker's session; it counts as away until it comes back.
  void DropSession(const std::string& worker_id, const absl::Status& status);
  // A message came: renews the lease. False if this link is not the worker's present one: ignore the message.
  bool Touch(const std::string& worker_id, const WorkerLink* link);
  void SetMemory(const std::string& worker_id, const v1::Heartbeat& heartbeat);
  // Looks for leases and graces that ran out; called regularly.
  void Tick();

  // Connected and free, by id: w2 before w10.
  std::vector<std::string> IdleWorkers() const;
  // Connected, busy or not, in the same order.
  std::vector<std::string> ConnectedWorkers() const;
  // All that are not lost, in the same order.
  std::vector<WorkerOffer> Offers() const;
  Counts Count() const;
  bool IsLost(const std::string& worker_id) const;
  // Its stream is broken and it has not come back yet, or it is lost.
  bool IsAway(const std::string& worker_id) const;
  // "worker w2 (pid 123, host x)".
  std::string Describe(const std::string& worker_id) const;
  std::vector<v1::Worker> List() const;

  // The command is dropped if the worker is away.
  void Send(const std::string& worker_id, const v1::WorkerCommand& command);
  // The worker hosts this part of a plan from now on, which takes so much of its memory. Says nothing to the worker.
  void Assign(const std::string& worker_id, const v1::HostedPart& part, std::uint64_t memory_bytes);
  // Tells the plan's workers, but for one, to drop it; each is idle once it reported all its parts as released.
  void ReleasePlan(const std::string& plan_id, const std::string& except_worker_id = "");
  // Tells one worker to drop a plan that nobody knows (any more).
  void ReleaseUnknown(const std::string& worker_id, const v1::HostedPart& part);
  // A part ended by itself or on request.
  void PartEnded(const std::string& worker_id, const v1::HostedPart& part);
  // Imports `model` from now on; empty = no longer.
  void SetImport(const std::string& worker_id, const std::string& model);
  // The model it imports, or empty.
  std::string ImportOf(const std::string& worker_id) const;

  // Ends all sessions with this status.
  void CloseAll(const absl::Status& status);

 private:
  struct Part {
    v1::HostedPart id;
    std::uint64_t memory_bytes = 0;  // as computed for its placement
    bool has_ended = false;
  };
  struct Entry {
    v1::Hello hello;
    std::shared_ptr<WorkerLink> link;  // null while away
    absl::Time registered;
    absl::Time last_seen;
    std::optional<absl::Time> away_since;
    bool is_lost = false;
    v1::Heartbeat memory;
    std::string model;        // import
    std::vector<Part> parts;  // of one plan
    bool is_releasing = false;
    absl::Time release_started;

    bool HasEnded() const;
    const std::string& plan_id() const { return parts.front().id.plan_id(); }
  };

  void MarkLost(Entry* entry, const std::string& reason);
  bool IsBusy(const Entry& entry) const { return !entry.parts.empty() || !entry.model.empty(); }
  Entry* Find(const std::string& worker_id);
  const Entry* Find(const std::string& worker_id) const;
  void Changed();

  Executor* const executor_;
  const WorkerRegistryOptions options_;
  Events events_;
  std::map<std::string, Entry> workers_;
  absl::Time last_tick_;
};

}  // namespace qst

#endif  // QST_SERVER_WORKER_REGISTRY_H_
