#include "server/worker_registry.h"

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "server/log.h"

namespace qst {
namespace {

// A worker that was lost stays in lists for so long, so that people see what happened.
constexpr absl::Duration kKeepLost = absl::Minutes(10);
constexpr int kHeartbeatsPerLease = 5;

// w2 before w10, whoever registered first: the same cluster gets the same placements every day.
bool ComesBefore(const std::string& a, const std::string& b) {
  return a.size() != b.size() ? a.size() < b.size() : a < b;
}

bool IsSamePart(const v1::HostedPart& a, const v1::HostedPart& b) {
  return a.plan_id() == b.plan_id() && a.is_side() == b.is_side() && (a.is_side() || a.stage() == b.stage());
}

}  // namespace

bool WorkerRegistry::Entry::HasEnded() const {
  return std::all_of(parts.begin(), parts.end(), [](const Part& part) { return part.has_ended; });
}

WorkerRegistry::WorkerRegistry(Executor* executor, WorkerRegistryOptions options)
    : executor_(executor), options_(options), last_tick_(executor->Now()) {}

WorkerRegistry::Entry* WorkerRegistry::Find(const std::string& worker_id) {
  const auto found = workers_.find(worker_id);
  return found == workers_.end() ? nullptr : &found->second;
}

const WorkerRegistry::Entry* WorkerRegistry::Find(const std::string& worker_id) const {
  const auto found = workers_.find(worker_id);
  return found == workers_.end() ? nullptr : &found->second;
}

void WorkerRegistry::Changed() {
  if (events_.on_change) events_.on_change();
}

absl::StatusOr<WorkerRegistry::HelloKind> WorkerRegistry::Connect(const v1::Hello& hello,
                                                                  std::shared_ptr<WorkerLink> link) {
  if (hello.worker_id().empty() || hello.worker_id().size() > 256) {
    return absl::InvalidArgumentError("hello.worker_id: must be 1 to 256 bytes");
  }
  if (hello.incarnation().empty()) return absl::InvalidArgumentError("hello.incarnation: is required");
  const absl::Time now = executor_->Now();
  HelloKind kind = HelloKind::kNew;
  if (Entry* known = Find(hello.worker_id()); known != nullptr) {
    const bool is_same_process = known->hello.incarnation() == hello.incarnation();
    if (!is_same_process && known->link != nullptr) {
      return absl::AlreadyExistsError(
          absl::StrCat("the id of ", Describe(hello.worker_id()), " is in use: start this worker with another --id"));
    }
    if (is_same_process && !known->is_lost) {
      kind = HelloKind::kReturned;
      if (known->link != nullptr) known->link->Close(absl::AbortedError("the worker opened another session"));
    } else if (!known->is_lost) {
      MarkLost(known, "its process ended and another took its id");
    }
  }
  Entry& entry = workers_[hello.worker_id()];
  if (kind == HelloKind::kNew) {
    entry = Entry();
    entry.registered = now;
  }
  entry.hello = hello;
  entry.link = std::move(link);
  entry.last_seen = now;
  entry.away_since.reset();
  if (entry.is_releasing) {
    // What it was to drop while it was away: dropped, or to be told again (by whoever looks at hello.hosted).
    entry.parts.clear();
    entry.is_releasing = false;
  }
  for (Part& part : entry.parts) {
    part.has_ended = std::none_of(hello.hosted().begin(), hello.hosted().end(),
                                  [&](const v1::HostedPart& hosted) { return IsSamePart(hosted, part.id); });
  }
  LogInfo(absl::StrCat(Describe(hello.worker_id()), kind == HelloKind::kNew ? " registered: " : " is back: ",
                       hello.device(), ", ", hello.num_threads(), " threads, hosts ", hello.hosted_size(), " parts"));
  v1::WorkerCommand command;
  command.mutable_welcome()->set_lease_ms(absl::ToInt64Milliseconds(options_.lease));
  command.mutable_welcome()->set_heartbeat_ms(absl::ToInt64Milliseconds(options_.lease / kHeartbeatsPerLease));
  entry.link->Send(command);
  return kind;
}

void WorkerRegistry::Disconnect(const std::string& worker_id, const WorkerLink* link) {
  Entry* entry = Find(worker_id);
  if (entry == nullptr || entry->link.get() != link || entry->is_lost) return;
  entry->link.reset();
  entry->away_since = executor_->Now();
  LogWarning(absl::StrCat(Describe(worker_id), ": connection closed; it has ",
                          absl::FormatDuration(options_.reconnect_grace), " to come back"));
  Changed();
}

void WorkerRegistry::DropSession(const std::string& worker_id, const absl::Status& status) {
  Entry* entry = Find(worker_id);
  if (entry == nullptr || entry->link == nullptr) return;
  const std::shared_ptr<WorkerLink> link = entry->link;
  Disconnect(worker_id, link.get());
  link->Close(status);
}

bool WorkerRegistry::Touch(const std::string& worker_id, const WorkerLink* link) {
  Entry* entry = Find(worker_id);
  if (entry == nullptr || entry->link.get() != link) return false;
  entry->last_seen = executor_->Now();
  return true;
}

void WorkerRegistry::SetMemory(const std::string& worker_id, const v1::Heartbeat& heartbeat) {
  if (Entry* entry = Find(worker_id)) entry->memory = heartbeat;
}

void WorkerRegistry::Tick() {
  const absl::Time now = executor_->Now();
  // If this process itself stood still, silence says nothing about the workers: their reports are still in the queue.
  const absl::Duration stood_still = now - last_tick_;
  last_tick_ = now;
  if (stood_still > options_.lease / 2) {
    LogWarning(
        absl::StrCat("the coordinator stood still for ", absl::FormatDuration(stood_still), ": leases extended"));
    for (auto& [id, entry] : workers_) {
      entry.last_seen += stood_still;
      if (entry.away_since.has_value()) *entry.away_since += stood_still;
    }
  }
  std::vector<std::pair<std::string, std::string>> lost;
  std::vector<std::string> forgotten;
  bool is_changed = false;
  for (auto& [id, entry] : workers_) {
    if (entry.is_lost) {
      if (now - entry.last_seen > kKeepLost) forgotten.push_back(id);
      continue;
    }
    if (entry.away_since.has_value() && now - *entry.away_since >= options_.reconnect_grace) {
      lost.emplace_back(id, "connection closed");
    } else if (now - entry.last_seen >= options_.lease) {
      lost.emplace_back(id, absl::StrCat("silent for ", absl::FormatDuration(options_.lease)));
    } else if (entry.is_releasing && now - entry.release_started >= options_.release_grace) {
      LogWarning(absl::StrCat(Describe(id), " did not report its parts of plan ", entry.plan_id(),
                              " as released; taken as free"));
      entry.parts.clear();
      entry.is_releasing = false;
      is_changed = true;
    }
  }
  for (const std::string& id : forgotten) workers_.erase(id);
  for (const auto& [id, reason] : lost) {
    if (Entry* entry = Find(id)) MarkLost(entry, reason);
  }
  if (is_changed) Changed();
}

void WorkerRegistry::MarkLost(Entry* entry, const std::string& reason) {
  const std::string worker_id = entry->hello.worker_id();
  const std::string plan_id = entry->is_releasing || entry->parts.empty() ? "" : entry->plan_id();
  const std::string model = entry->model;
  LogWarning(absl::StrCat(Describe(worker_id), " was lost: ", reason));
  if (entry->link != nullptr) entry->link->Close(absl::UnavailableError(absl::StrCat("lease over: ", reason)));
  entry->link.reset();
  entry->is_lost = true;
  entry->is_releasing = false;
  entry->model.clear();
  entry->parts.clear();
  if (events_.on_lost) events_.on_lost(worker_id, plan_id, model, reason);
  Changed();
}

std::vector<std::string> WorkerRegistry::IdleWorkers() const {
  std::vector<std::string> ids;
  for (const auto& [id, entry] : workers_) {
    if (entry.link != nullptr && !IsBusy(entry)) ids.push_back(id);
  }
  std::sort(ids.begin(), ids.end(), ComesBefore);
  return ids;
}

std::vector<std::string> WorkerRegistry::ConnectedWorkers() const {
  std::vector<std::string> ids;
  for (const auto& [id, entry] : workers_) {
    if (entry.link != nullptr) ids.push_back(id);
  }
  std::sort(ids.begin(), ids.end(), ComesBefore);
  return ids;
}

std::vector<WorkerOffer> WorkerRegistry::Offers() const {
  std::vector<WorkerOffer> offers;
  for (const auto& [id, entry] : workers_) {
    if (entry.is_lost) continue;
    WorkerOffer& offer = offers.emplace_back();
    const bool is_cuda = absl::StartsWith(entry.hello.device(), "cuda");
    offer.id = id;
    offer.kind = is_cuda ? v1::DEVICE_KIND_CUDA : v1::DEVICE_KIND_CPU;
    offer.device = absl::StrCat(is_cuda ? entry.hello.device() : "the memory", " of host ", entry.hello.host());
    offer.memory_bytes = is_cuda ? entry.hello.device_memory_bytes() : entry.hello.memory_bytes();
    for (const Part& part : entry.parts) offer.used_bytes += part.memory_bytes;
    offer.is_idle = entry.link != nullptr && !IsBusy(entry);
  }
  std::sort(offers.begin(), offers.end(),
            [](const WorkerOffer& a, const WorkerOffer& b) { return ComesBefore(a.id, b.id); });
  return offers;
}

WorkerRegistry::Counts WorkerRegistry::Count() const {
  Counts counts;
  for (const auto& [id, entry] : workers_) {
    if (entry.is_lost) continue;
    ++counts.registered;
    if (IsBusy(entry)) ++counts.busy;
  }
  return counts;
}

bool WorkerRegistry::IsLost(const std::string& worker_id) const {
  const Entry* entry = Find(worker_id);
  return entry == nullptr || entry->is_lost;
}

bool WorkerRegistry::IsAway(const std::string& worker_id) const {
  const Entry* entry = Find(worker_id);
  return entry == nullptr || entry->link == nullptr;
}

std::string WorkerRegistry::Describe(const std::string& worker_id) const {
  const Entry* entry = Find(worker_id);
  if (entry == nullptr) return absl::StrCat("worker ", worker_id);
  return absl::StrCat("worker ", worker_id, " (pid ", entry->hello.pid(), ", host ", entry->hello.host(), ")");
}

std::vector<v1::Worker> WorkerRegistry::List() const {
  std::vector<const Entry*> entries;
  for (const auto& [id, entry] : workers_) entries.push_back(&entry);
  std::sort(entries.begin(), entries.end(),
            [](const Entry* a, const Entry* b) { return ComesBefore(a->hello.worker_id(), b->hello.worker_id()); });
  std::vector<v1::Worker> workers;
  for (const Entry* entry : entries) {
    v1::Worker& worker = workers.emplace_back();
    worker.set_id(entry->hello.worker_id());
    // People see at once that a session ended; what depends on it waits for reconnect_grace.
    worker.set_state(entry->link == nullptr ? v1::WORKER_STATE_LOST
                                            : (IsBusy(*entry) ? v1::WORKER_STATE_BUSY : v1::WORKER_STATE_IDLE));
    worker.set_device(entry->hello.device());
    worker.set_host(entry->hello.host());
    worker.set_pid(entry->hello.pid());
    worker.set_num_threads(entry->hello.num_threads());
    worker.set_memory_bytes(entry->hello.memory_bytes());
    worker.set_device_name(entry->hello.device_name());
    worker.set_device_memory_bytes(entry->hello.device_memory_bytes());
    for (const Part& part : entry->parts) {
      worker.set_job_id(part.id.job_id());
      worker.add_parts(PartName(part.id.is_side(), part.id.stage()));
    }
    if (!entry->model.empty()) worker.add_parts(absl::StrCat("import of ", entry->model));
    worker.set_registered_ms(absl::ToUnixMillis(entry->registered));
    worker.set_last_seen_ms(absl::ToUnixMillis(entry->last_seen));
    worker.set_resident_bytes(entry->memory.resident_bytes());
    worker.set_peak_resident_bytes(entry->memory.peak_resident_bytes());
    worker.set_budget_bytes(entry->memory.budget_bytes());
  }
  return workers;
}

void WorkerRegistry::Send(const std::string& worker_id, const v1::WorkerCommand& command) {
  Entry* entry = Find(worker_id);
  if (entry != nullptr && entry->link != nullptr) entry->link->Send(command);
}

void WorkerRegistry::Assign(const std::string& worker_id, const v1::HostedPart& part, std::uint64_t memory_bytes) {
  Entry* entry = Find(worker_id);
  if (entry == nullptr || entry->is_lost) return;
  // The last plan's parts may still be on their way out if the worker was taken as free.
  if (!entry->parts.empty() && entry->plan_id() != part.plan_id()) entry->parts.clear();
  entry->is_releasing = false;
  for (Part& known : entry->parts) {
    if (IsSamePart(known.id, part)) {
      known.has_ended = false;
      return;
    }
  }
  entry->parts.push_back({part, memory_bytes, false});
}

void WorkerRegistry::ReleasePlan(const std::string& plan_id, const std::string& except_worker_id) {
  bool is_changed = false;
  for (auto& [id, entry] : workers_) {
    if (entry.parts.empty() || entry.plan_id() != plan_id || entry.is_releasing || id == except_worker_id) continue;
    entry.is_releasing = true;
    entry.release_started = executor_->Now();
    v1::WorkerCommand command;
    command.mutable_release()->set_plan_id(plan_id);
    if (entry.link != nullptr) entry.link->Send(command);
    // One that is away and comes back with its parts is told then.
    if (entry.HasEnded() || entry.link == nullptr) {
      entry.parts.clear();
      entry.is_releasing = false;
    }
    is_changed = true;
  }
  if (is_changed) Changed();
}

void WorkerRegistry::ReleaseUnknown(const std::string& worker_id, const v1::HostedPart& part) {
  Entry* entry = Find(worker_id);
  if (entry == nullptr || entry->link == nullptr) return;
  LogInfo(absl::StrCat(Describe(worker_id), " hosts ", PartName(part.is_side(), part.stage()), " of plan ",
                       part.plan_id(), ", which is over: released"));
  if (entry->parts.empty() || entry->is_releasing) {
    const bool was_releasing = entry->is_releasing;
    // What it takes is not known any more.
    Assign(worker_id, part, 0);
    entry->is_releasing = true;
    if (!was_releasing) entry->release_started = executor_->Now();
  }
  v1::WorkerCommand command;
  command.mutable_release()->set_plan_id(part.plan_id());
  entry->link->Send(command);
}

void WorkerRegistry::PartEnded(const std::string& worker_id, const v1::HostedPart& part) {
  Entry* entry = Find(worker_id);
  if (entry == nullptr) return;
  for (Part& known : entry->parts) {
    if (IsSamePart(known.id, part)) known.has_ended = true;
  }
  // A part that ended by itself still belongs to its plan until that is released.
  if (!entry->is_releasing || !entry->HasEnded()) return;
  entry->parts.clear();
  entry->is_releasing = false;
  Changed();
}

void WorkerRegistry::SetImport(const std::string& worker_id, const std::string& model) {
  Entry* entry = Find(worker_id);
  if (entry == nullptr || entry->model == model) return;
  entry->model = model;
  if (model.empty()) Changed();
}

std::string WorkerRegistry::ImportOf(const std::string& worker_id) const {
  const Entry* entry = Find(worker_id);
  return entry == nullptr ? "" : entry->model;
}

void WorkerRegistry::CloseAll(const absl::Status& status) {
  for (auto& [id, entry] : workers_) {
    if (entry.link != nullptr) entry.link->Close(status);
  }
}

}  // namespace qst
