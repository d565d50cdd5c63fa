#include "worker/train/metrics_log.h"

#include <cerrno>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "proto/support/status_macros.h"
#include "worker/checkpoint/file_io.h"

namespace qst {
namespace {

// JSON has no words for what is not a number.
std::string Number(double value) { return std::isfinite(value) ? absl::StrFormat("%.9g", value) : "null"; }

}  // namespace

std::string ToJsonLine(const TrainMetrics& m) {
  return absl::StrFormat(
      "{\"step\":%d,\"epoch\":%.6g,\"loss\":%s,\"lr\":%s,\"grad_norm\":%s,\"tokens\":%d,\"tokens_per_second\":%.6g,"
      "\"elapsed_s\":%.3f,\"device_memory_bytes\":%d,\"cache_hit_ratio\":%.6g,\"wait_s\":%.6g,\"side_s\":%.6g,"
      "\"optimizer_s\":%.6g}",
      m.step, m.epoch, Number(m.loss), Number(m.lr), Number(m.grad_norm), m.tokens, m.tokens_per_second, m.elapsed_s,
      m.device_memory_bytes, m.cache_hit_ratio, m.wait_s, m.side_s, m.optimizer_s);
}

std::string EvalJsonLine(std::int64_t step, double epoch, const std::map<std::string, double>& metrics) {
  std::string out = absl::StrFormat("{\"step\":%d,\"epoch\":%.6g,\"eval\":{", step, epoch);
  const char* separator = "";
  for (const auto& [name, value] : metrics) {
    absl::StrAppend(&out, separator, "\"", name, "\":", Number(value));
    separator = ",";
  }
  return out + "}}";
}

std::int64_t ResidentBytes() {
  std::FILE* file = std::fopen("/proc/self/statm", "r");
  if (file == nullptr) return 0;
  long long total_pages = 0;
  long long resident_pages = 0;
  const int num_read = std::fscanf(file, "%lld %lld", &total_pages, &resident_pages);
  std::fclose(file);
  return num_read == 2 ? resident_pages * sysconf(_SC_PAGESIZE) : 0;
}

absl::StatusOr<std::unique_ptr<MetricsLog>> MetricsLog::Open(const std::string& path, std::int64_t keep_bytes) {
  const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
  if (fd < 0) return ErrnoStatus("cannot open", path, errno);
  auto log = absl::WrapUnique(new MetricsLog(path, fd, keep_bytes));
  struct stat info;
  if (fstat(fd, &info) != 0) return ErrnoStatus("cannot stat", path, errno);
  if (info.st_size < keep_bytes) {
    return absl::DataLossError(
        absl::StrCat(path, ": has ", info.st_size, " bytes, the checkpoint was made after ", keep_bytes));
  }
  if (ftruncate(fd, keep_bytes) != 0) return ErrnoStatus("cannot cut", path, errno);
  if (lseek(fd, keep_bytes, SEEK_SET) != keep_bytes) return ErrnoStatus("cannot seek in", path, errno);
  return log;
}

MetricsLog::~MetricsLog() { close(fd_); }

absl::Status MetricsLog::Append(absl::string_view line) {
  const std::string text = absl::StrCat(line, "\n");
  std::size_t done = 0;
  while (done < text.size()) {
    const ssize_t written = write(fd_, text.data() + done, text.size() - done);
    if (written < 0) {
      if (errno == EINTR) continue;
      return ErrnoStatus("cannot write", path_, errno);
    }
    done += static_cast<std::size_t>(written);
  }
  size_bytes_ += static_cast<std::int64_t>(text.size());
  return absl::OkStatus();
}

absl::Status MetricsLog::Sync() {
  if (fsync(fd_) != 0) return ErrnoStatus("cannot sync", path_, errno);
  return absl::OkStatus();
}

}  // namespace qst
