#include "worker/worker_options.h"

#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <iterator>
#include <optional>
#include <set>
#include <system_error>
#include <thread>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "kernels/cuda/device.h"
#include "proto/support/status_macros.h"
#include "worker/worker_address.h"

namespace qst {
namespace {

constexpr int kMaxThreads = 1024;

struct FlagInfo {
  const char* name;
  std::string WorkerFlags::*field;
  const char* help;
};

// All flags that take text; --threads is text until ParseWorkerFlags has read it.
constexpr FlagInfo kFlags[] = {
    {"coordinator", &WorkerFlags::coordinator, "HOST:PORT      the coordinator's address; required"},
    {"store", &WorkerFlags::store, "FOLDER         the folder that the coordinator keeps its store in; required"},
    {"id", &WorkerFlags::id, "NAME           unique in the cluster (default: host name and process id)"},
    {"threads", &WorkerFlags::threads_text, "N              threads that compute; 0 = one for each core (default: 0)"},
    {"device", &WorkerFlags::device,
     "auto|cpu|cuda:N  what computes; auto takes cuda:0 where there is a GPU (default: auto)"},
    {"device_memory", &WorkerFlags::device_memory,
     "BYTES   most of the GPU's memory that is used, also as 20GB or 18.5GiB (default: nine\n"
     "                       tenths of what is free)"},
    {"isa", &WorkerFlags::isa, "auto|portable|avx2  instruction set of the CPU backend (default: auto)"},
    {"data_interface", &WorkerFlags::data_interface,
     "NAME           network interface at which other workers reach this one"},
    {"data_host", &WorkerFlags::data_host,
     "HOST           name or address at which other workers reach this one (default: this\n"
     "                       machine's address on its way to the coordinator)"},
    {"log_level", &WorkerFlags::log_level, "debug|info|warn|error  (default: info)"},
};

// "123", "20GB" (10^9 bytes each), "1.5GiB" (2^30); at least 1 byte.
absl::StatusOr<std::int64_t> ParseBytes(absl::string_view text) {
  constexpr std::pair<const char*, double> kUnits[] = {{"KiB", 0x1p10}, {"MiB", 0x1p20}, {"GiB", 0x1p30},
                                                       {"TiB", 0x1p40}, {"KB", 1e3},     {"MB", 1e6},
                                                       {"GB", 1e9},     {"TB", 1e12},    {"", 1.0}};
  absl::string_view number = text;
  const auto* const unit = std::find_if(std::begin(kUnits), std::end(kUnits),
                                        [&](const auto& known) { return absl::ConsumeSuffix(&number, known.first); });
  double value = 0.0;
  // The largest that any machine has, and a number that an int64 holds.
  constexpr double kMaxBytes = 0x1p50;
  if (number.empty() || !absl::ascii_isdigit(static_cast<unsigned char>(number.front())) ||
      !absl::SimpleAtod(number, &value) || !(value * unit->second >= 1.0 && value * unit->second <= kMaxBytes)) {
    return absl::InvalidArgumentError(absl::StrCat("\"", text, "\" is no number of bytes such as 20GB"));
  }
  return static_cast<std::int64_t>(value * unit->second);
}

// "cuda:3" as 3; nothing: CPU.
absl::StatusOr<std::optional<int>> ParseDevice(absl::string_view text) {
  if (text == "cpu") return std::nullopt;
  if (text == "auto") return cuda::Device::Count() > 0 ? std::optional<int>(0) : std::nullopt;
  int ordinal = 0;
  absl::string_view number = text;
  if (!absl::ConsumePrefix(&number, "cuda:") || number.empty() ||
      !absl::ascii_isdigit(static_cast<unsigned char>(number.front())) || !absl::SimpleAtoi(number, &ordinal)) {
    return absl::InvalidArgumentError(absl::StrCat("\"", text, "\" is none of auto, cpu, cuda:N"));
  }
  return ordinal;
}

}  // namespace

std::string WorkerUsage() {
  std::string usage =
      "qst-worker hosts backbone stages and side networks of a qst cluster: one process per device.\n\n"
      "  qst-worker --coordinator=127.0.0.1:7310 --store=/var/lib/qst\n\n";
  for (const FlagInfo& flag : kFlags) absl::StrAppend(&usage, "  --", flag.name, "=", flag.help, "\n");
  return usage;
}

absl::StatusOr<WorkerFlags> ParseWorkerFlags(int argc, const char* const* argv) {
  WorkerFlags flags;
  std::set<std::string> seen;
  for (int i = 1; i < argc; ++i) {
    absl::string_view arg = argv[i];
    if (arg == "--help" || arg == "-h") {
      flags.wants_help = true;
      return flags;
    }
    if (!absl::ConsumePrefix(&arg, "--")) {
      return absl::InvalidArgumentError(absl::StrCat("unexpected argument \"", argv[i], "\"; see --help"));
    }
    const std::size_t equals = arg.find('=');
    const std::string name(arg.substr(0, equals));
    const auto* const flag =
        std::find_if(std::begin(kFlags), std::end(kFlags), [&](const FlagInfo& info) { return name == info.name; });
    if (flag == std::end(kFlags)) {
      return absl::InvalidArgumentError(absl::StrCat("unknown flag --", name, "; see --help"));
    }
    if (!seen.insert(name).second) return absl::InvalidArgumentError(absl::StrCat("--", name, " is given twice"));
    if (equals != absl::string_view::npos) {
      flags.*(flag->field) = std::string(arg.substr(equals + 1));
    } else if (i + 1 < argc) {
      flags.*(flag->field) = argv[++i];
    } else {
      return absl::InvalidArgumentError(absl::StrCat("--", name, " needs a value"));
    }
  }
  if (!flags.threads_text.empty() && !absl::SimpleAtoi(flags.threads_text, &flags.threads)) {
    return absl::InvalidArgumentError(absl::StrCat("--threads: \"", flags.threads_text, "\" is not a number"));
  }
  return flags;
}

absl::StatusOr<WorkerOptions> ResolveWorkerOptions(const WorkerFlags& flags) {
  WorkerOptions options;
  if (flags.coordinator.empty()) {
    return absl::InvalidArgumentError("--coordinator is required: the coordinator's address as HOST:PORT");
  }
  const absl::StatusOr<std::pair<std::string, std::string>> address = SplitHostPort(flags.coordinator);
  if (!address.ok()) return Annotate(address.status(), "--coordinator");
  options.coordinator = flags.coordinator;

  if (flags.store.empty()) {
    return absl::InvalidArgumentError("--store is required: the folder that the coordinator was started with");
  }
  std::error_code error;
  const std::filesystem::path store = std::filesystem::canonical(flags.store, error);
  if (error || !std::filesystem::is_directory(store, error)) {
    return absl::InvalidArgumentError(absl::StrCat("--store: ", flags.store, " is not a folder that can be opened"));
  }
  options.store = store.string();

  options.id = flags.id.empty() ? absl::StrCat(MachineName(), "-", getpid()) : flags.id;
  if (options.id.size() > 256) return absl::InvalidArgumentError("--id: must have at most 256 bytes");

  if (flags.threads < 0 || flags.threads > kMaxThreads) {
    return absl::InvalidArgumentError(
        absl::StrCat("--threads: must be 0 (all cores) to ", kMaxThreads, ", is ", flags.threads));
  }
  const int num_cores = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  options.compute.num_threads = flags.threads == 0 ? num_cores : flags.threads;

  const absl::StatusOr<std::optional<int>> gpu = ParseDevice(flags.device);
  if (!gpu.ok()) return Annotate(gpu.status(), "--device");
  options.compute.gpu = *gpu;
  if (!flags.device_memory.empty()) {
    const absl::StatusOr<std::int64_t> bytes = ParseBytes(flags.device_memory);
    if (!bytes.ok()) return Annotate(bytes.status(), "--device_memory");
    // With --device=auto one command line serves machines with and without a GPU.
    if (flags.device == "cpu") {
      return absl::InvalidArgumentError("--device_memory is of a GPU's memory; it goes with --device=cuda:N or auto");
    }
    options.compute.gpu_memory_bytes = *bytes;
  }
  const absl::StatusOr<CpuIsa> parsed_isa = ParseIsa(flags.isa);
  if (!parsed_isa.ok()) return Annotate(parsed_isa.status(), "--isa");
  QST_ASSIGN_OR_RETURN(options.compute.isa, ResolveIsa(*parsed_isa));

  const std::string& level = flags.log_level;
  if (level != "debug" && level != "info" && level != "warn" && level != "error") {
    return absl::InvalidArgumentError(absl::StrCat("--log_level: \"", level, "\" is none of debug, info, warn, error"));
  }
  options.log_level = level;
  if (!flags.data_interface.empty() && !flags.data_host.empty()) {
    return absl::InvalidArgumentError("--data_interface and --data_host exclude each other");
  }
  options.data_address.interface = flags.data_interface;
  if (!flags.data_host.empty()) {
    options.data_address.host = flags.data_host;
  } else if (flags.data_interface.empty()) {
    const absl::StatusOr<std::string> local = LocalAddressTowards(address->first, address->second);
    // Not resolvable now: it may be later, and peers on this machine are served meanwhile.
    options.data_address.host = local.ok() ? *local : "127.0.0.1";
  }
  return options;
}

}  // namespace qst
