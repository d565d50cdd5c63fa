// Where peers that do not know each other yet leave their addresses.
#ifndef QST_WORKER_STREAM_KEY_VALUE_STORE_H_
#define QST_WORKER_STREAM_KEY_VALUE_STORE_H_

#include <map>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace qst {

// Thread-safe.
class KeyValueStore {
 public:
  virtual ~KeyValueStore() = default;
  virtual absl::Status Set(const std::string& key, const std::string& value) = 0;
  // Waits until the key is set; kDeadlineExceeded if it is not within `timeout`.
  virtual absl::StatusOr<std::string> Get(const std::string& key, absl::Duration timeout) = 0;
};

// For peers in one process.
class InMemoryKeyValueStore : public KeyValueStore {
 public:
  absl::Status Set(const std::string& key, const std::string& value) override {
    absl::MutexLock lock(&mutex_);
    values_[key] = value;
    changed_.SignalAll();
    return absl::OkStatus();
  }

  absl::StatusOr<std::string> Get(const std::string& key, absl::Duration timeout) override {
    const absl::Time deadline = absl::Now() + timeout;
    absl::MutexLock lock(&mutex_);
    for (;;) {
      const auto it = values_.find(key);
      if (it != values_.end()) return it->second;
      if (changed_.WaitWithDeadline(&mutex_, deadline) && absl::Now() >= deadline) {
        return absl::DeadlineExceededError(absl::StrCat("key ", key, " was not set in time"));
      }
    }
  }

 private:
  absl::Mutex mutex_;
  absl::CondVar changed_;
  std::map<std::string, std::string> values_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace qst

#endif  // QST_WORKER_STREAM_KEY_VALUE_STORE_H_
