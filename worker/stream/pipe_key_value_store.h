// Addresses handed over through pipes, for two ranks that are processes of one test.
#ifndef QST_WORKER_STREAM_PIPE_KEY_VALUE_STORE_H_
#define QST_WORKER_STREAM_PIPE_KEY_VALUE_STORE_H_

#include <unistd.h>

#include <cstdint>
#include <string>

#include "worker/stream/key_value_store.h"

namespace qst {

// Each side sets one value, which the other one gets; keys are not looked at.
class PipeKeyValueStore : public KeyValueStore {
 public:
  PipeKeyValueStore(int in, int out) : in_(in), out_(out) {}

  absl::Status Set(const std::string&, const std::string& value) override {
    const std::uint32_t size = static_cast<std::uint32_t>(value.size());
    if (write(out_, &size, 4) != 4 || write(out_, value.data(), size) != static_cast<ssize_t>(size)) {
      return absl::UnavailableError("pipe");
    }
    return absl::OkStatus();
  }
  absl::StatusOr<std::string> Get(const std::string&, absl::Duration) override {
    std::uint32_t size = 0;
    if (read(in_, &size, 4) != 4 || size > 4096) return absl::UnavailableError("pipe");
    std::string value(size, '\0');
    if (read(in_, value.data(), size) != static_cast<ssize_t>(size)) return absl::UnavailableError("pipe");
    return value;
  }

 private:
  const int in_;
  const int out_;
};

}  // namespace qst

#endif  // QST_WORKER_STREAM_PIPE_KEY_VALUE_STORE_H_
