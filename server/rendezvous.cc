#include "server/rendezvous.h"

#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"

namespace qst {
namespace {

constexpr std::size_t kMaxKeyBytes = 1024;
constexpr std::size_t kMaxValueBytes = 64 * 1024;
constexpr std::size_t kMaxKeysPerPlan = 65536;

absl::Status NoSuchPlan(const std::string& plan_id) {
  return absl::FailedPreconditionError(absl::StrCat("plan '", plan_id, "' is not active"));
}

}  // namespace

void Rendezvous::Open(const std::string& plan_id) { plans_[plan_id]; }

void Rendezvous::Close(const std::string& plan_id) {
  auto node = plans_.extract(plan_id);
  if (node.empty()) return;
  for (auto& [handle, waiter] : node.mapped().waiters) {
    waiter.callback(absl::AbortedError(absl::StrCat("plan '", plan_id, "' was released")));
  }
}

absl::Status Rendezvous::Set(const std::string& plan_id, const std::string& key, std::string value) {
  const auto plan = plans_.find(plan_id);
  if (plan == plans_.end()) return NoSuchPlan(plan_id);
  if (key.empty() || key.size() > kMaxKeyBytes) {
    return absl::InvalidArgumentError(absl::StrCat("key: must be 1 to 1024 bytes, is ", key.size()));
  }
  if (value.size() > kMaxValueBytes) {
    return absl::InvalidArgumentError(absl::StrCat("value of '", key, "': at most 65536 bytes, is ", value.size()));
  }
  if (plan->second.values.size() >= kMaxKeysPerPlan) {
    return absl::ResourceExhaustedError(absl::StrCat("plan '", plan_id, "' has ", kMaxKeysPerPlan, " keys already"));
  }
  // Taken out before they are called: a callback may come back here.
  std::vector<Callback> ready;
  for (auto waiter = plan->second.waiters.begin(); waiter != plan->second.waiters.end();) {
    if (waiter->second.key == key) {
      ready.push_back(std::move(waiter->second.callback));
      waiter = plan->second.waiters.erase(waiter);
    } else {
      ++waiter;
    }
  }
  plan->second.values[key] = value;
  for (const Callback& callback : ready) callback(value);
  return absl::OkStatus();
}

std::uint64_t Rendezvous::Get(const std::string& plan_id, const std::string& key, Callback callback) {
  const auto plan = plans_.find(plan_id);
  if (plan == plans_.end()) {
    callback(NoSuchPlan(plan_id));
    return 0;
  }
  const auto value = plan->second.values.find(key);
  if (value != plan->second.values.end()) {
    callback(value->second);
    return 0;
  }
  const std::uint64_t handle = next_handle_++;
  plan->second.waiters.emplace(handle, Waiter{key, std::move(callback)});
  return handle;
}

void Rendezvous::Forget(std::uint64_t handle) {
  for (auto& [plan_id, plan] : plans_) {
    if (plan.waiters.erase(handle) > 0) return;
  }
}

void Rendezvous::EndWaits(const absl::Status& status) {
  for (auto& [plan_id, plan] : plans_) {
    for (auto& [handle, waiter] : std::exchange(plan.waiters, {})) waiter.callback(status);
  }
}

}  // namespace qst
