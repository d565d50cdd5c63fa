#include "worker/worker_memory.h"

#include <malloc.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>

#include "absl/strings/numbers.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"

namespace qst {
namespace {

// "VmRSS:     1234 kB"
bool ParseKilobytes(absl::string_view line, absl::string_view key, std::int64_t* bytes) {
  if (!absl::ConsumePrefix(&line, key)) return false;
  line = absl::StripAsciiWhitespace(line);
  absl::ConsumeSuffix(&line, "kB");
  std::int64_t kilobytes = 0;
  if (!absl::SimpleAtoi(absl::StripAsciiWhitespace(line), &kilobytes)) return false;
  *bytes = kilobytes * 1024;
  return true;
}

}  // namespace

ProcessMemory ReadProcessMemory() {
  ProcessMemory memory;
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (!ParseKilobytes(line, "VmRSS:", &memory.resident_bytes)) ParseKilobytes(line, "VmHWM:", &memory.peak_bytes);
  }
  memory.peak_bytes = std::max(memory.peak_bytes, memory.resident_bytes);
  return memory;
}

void ResetPeakMemory() {
  std::ofstream clear("/proc/self/clear_refs");
  clear << "5\n";
}

std::int64_t MachineMemoryBytes() {
  const std::int64_t physical = static_cast<std::int64_t>(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGE_SIZE);
  std::ifstream limit_file("/sys/fs/cgroup/memory.max");
  std::string text;
  std::int64_t limit = 0;
  if (limit_file >> text && absl::SimpleAtoi(text, &limit) && limit > 0) return std::min(limit, physical);
  return physical;
}

void ConfigureMalloc() {
  mallopt(M_ARENA_MAX, 2);
  // Fixed, or malloc raises it as blocks are freed and then keeps them.
  mallopt(M_MMAP_THRESHOLD, 256 * 1024);
  mallopt(M_TRIM_THRESHOLD, 1024 * 1024);
}

void TrimMalloc() { malloc_trim(0); }

std::string FormatMegabytes(std::int64_t bytes) { return absl::StrFormat("%.1f MB", static_cast<double>(bytes) / 1e6); }

std::string FormatBytes(std::int64_t bytes) {
  return bytes < 1000000000 ? FormatMegabytes(bytes) : absl::StrFormat("%.1f GB", static_cast<double>(bytes) / 1e9);
}

}  // namespace qst
