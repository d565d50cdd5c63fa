// The worker's command line.
#ifndef QST_WORKER_WORKER_OPTIONS_H_
#define QST_WORKER_WORKER_OPTIONS_H_

#include <string>

#include "absl/status/statusor.h"
#include "worker/compute_device.h"
#include "worker/host_part.h"

namespace qst {

struct WorkerOptions {
  std::string coordinator;  // HOST:PORT
  std::string store;        // canonical path of the model store
  std::string id;
  ComputeDeviceOptions compute;
  DataAddress data_address;
  std::string log_level = "info";  // debug, info, warn or error
};

// What the flags say, as given.
struct WorkerFlags {
  std::string coordinator;
  std::string store;
  std::string id;
  std::string threads_text;
  int threads = 0;
  std::string device = "auto";
  std::string device_memory;
  std::string isa = "auto";
  std::string data_interface;
  std::string data_host;
  std::string log_level = "info";
  bool wants_help = false;
};

// --name=value or --name value, each flag at most once. kInvalidArgument: unknown, without value, or given twice.
absl::StatusOr<WorkerFlags> ParseWorkerFlags(int argc, const char* const* argv);
// What --help prints.
std::string WorkerUsage();

// Checks each flag and all together, and fills in what was left open. A GPU is not opened.
// kInvalidArgument: names the flag and what to do. kFailedPrecondition: this machine lacks what is asked for.
absl::StatusOr<WorkerOptions> ResolveWorkerOptions(const WorkerFlags& flags);

}  // namespace qst

#endif  // QST_WORKER_WORKER_OPTIONS_H_
