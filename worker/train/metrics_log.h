// metrics.jsonl: one JSON object a line.
#ifndef QST_WORKER_TRAIN_METRICS_LOG_H_
#define QST_WORKER_TRAIN_METRICS_LOG_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace qst {

struct TrainMetrics {
  std::int64_t step = 0;
  double epoch = 0.0;
  double loss = 0.0;       // mean over the targets of this step
  double lr = 0.0;
  double grad_norm = 0.0;  // before clipping
  std::int64_t tokens = 0;  // trained on since the job began
  double tokens_per_second = 0.0;  // over the steps since the line before, evaluation left out
  double elapsed_s = 0.0;  // since the job began, pauses left out
  std::int64_t device_memory_bytes = 0;
  double cache_hit_ratio = 0.0;
  // Where the time since the line before went.
  double wait_s = 0.0;       // for hidden states
  double side_s = 0.0;       // forward and backward of the side network
  double optimizer_s = 0.0;
};
// One line without its end. Losses have the nine digits that tell two float32 apart.
std::string ToJsonLine(const TrainMetrics& metrics);
std::string EvalJsonLine(std::int64_t step, double epoch, const std::map<std::string, double>& metrics);

// Resident memory of this process, in bytes; 0 if unknown.
std::int64_t ResidentBytes();

class MetricsLog {
 public:
  // Opens for appending after the first `keep_bytes` bytes; what follows them is cut off.
  // kDataLoss: the file is shorter than that (the log goes on from its end all the same if `keep_bytes` is lowered).
  static absl::StatusOr<std::unique_ptr<MetricsLog>> Open(const std::string& path, std::int64_t keep_bytes);
  ~MetricsLog();
  MetricsLog(const MetricsLog&) = delete;
  MetricsLog& operator=(const MetricsLog&) = delete;

  // Adds a line and hands it to the operating system.
  absl::Status Append(absl::string_view line);
  // Waits until all lines are on disk.
  absl::Status Sync();
  std::int64_t size_bytes() const { return size_bytes_; }

 private:
  MetricsLog(std::string path, int fd, std::int64_t size) : path_(std::move(path)), fd_(fd), size_bytes_(size) {}
  std::string path_;
  int fd_;
  std::int64_t size_bytes_;
};

}  // namespace qst

#endif  // QST_WORKER_TRAIN_METRICS_LOG_H_
