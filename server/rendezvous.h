// Where the peers of a placement leave their addresses for each other: keys of one plan, gone with it.
#ifndef QST_SERVER_RENDEZVOUS_H_
#define QST_SERVER_RENDEZVOUS_H_

#include <cstdint>
#include <functional>
#include <map>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace qst {

// Lives on the control loop.
class Rendezvous {
 public:
  using Callback = std::function<void(absl::StatusOr<std::string> value)>;

  // Keys of `plan_id` are taken from now on, until Close.
  void Open(const std::string& plan_id);
  // Forgets the keys; those who wait get kAborted.
  void Close(const std::string& plan_id);

  // Sets or replaces. kFailedPrecondition: no such plan. kInvalidArgument: no key, or too much (64 KiB a value).
  absl::Status Set(const std::string& plan_id, const std::string& key, std::string value);
  // Calls back with the value as soon as it is there: now, or in a later Set. Returns a handle for Forget, 0 if it has
  // called back already (with the value, or kFailedPrecondition: no such plan).
  std::uint64_t Get(const std::string& plan_id, const std::string& key, Callback callback);
  // The waiter is no longer interested and will not be called.
  void Forget(std::uint64_t handle);
  // Calls all who wait with this error; keys stay.
  void EndWaits(const absl::Status& status);

 private:
  struct Waiter {
    std::string key;
    Callback callback;
  };
  struct Plan {
    std::map<std::string, std::string> values;
    std::map<std::uint64_t, Waiter> waiters;
  };
  std::map<std::string, Plan> plans_;
  std::uint64_t next_handle_ = 1;
};

}  // namespace qst

#endif  // QST_SERVER_RENDEZVOUS_H_
