// How much memory this process uses.
#ifndef QST_WORKER_WORKER_MEMORY_H_
#define QST_WORKER_WORKER_MEMORY_H_

#include <cstdint>
#include <string>

namespace qst {

struct ProcessMemory {
  std::int64_t resident_bytes = 0;
  // The most since the process began or since ResetPeakMemory.
  std::int64_t peak_bytes = 0;
};

// From /proc/self/status; zeros where it cannot be read.
ProcessMemory ReadProcessMemory();

// Lets the peak begin anew at what is resident now, where the kernel offers that.
void ResetPeakMemory();

// Memory of this machine (or of the container that it is, where that is less).
std::int64_t MachineMemoryBytes();

// Makes malloc give memory back: few arenas, and large blocks straight from the system. Before any thread starts.
void ConfigureMalloc();
// Gives freed memory back to the system now.
void TrimMalloc();

// "142.3 MB".
std::string FormatMegabytes(std::int64_t bytes);
// "142.3 MB", and from 1 GB on "70.0 GB".
std::string FormatBytes(std::int64_t bytes);

}  // namespace qst

#endif  // QST_WORKER_WORKER_MEMORY_H_
