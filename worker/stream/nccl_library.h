// The functions of NCCL that the data plane calls.
#ifndef QST_WORKER_STREAM_NCCL_LIBRARY_H_
#define QST_WORKER_STREAM_NCCL_LIBRARY_H_

#include <nccl.h>

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"

#define QST_NCCL_FUNCTIONS(X) \
  X(GetVersion)               \
  X(GetUniqueId)              \
  X(CommInitRankConfig)       \
  X(CommGetAsyncError)        \
  X(CommFinalize)             \
  X(CommDestroy)              \
  X(CommAbort)                \
  X(Send)                     \
  X(Recv)                     \
  X(GroupStart)               \
  X(GroupEnd)                 \
  X(GetErrorString)           \
  X(GetLastError)

namespace qst {

// Loaded when it is first asked for, not with the program: the library is large, and a worker whose plans stay on one
// GPU, or that has none, runs without it.
struct NcclLibrary {
#define QST_NCCL_DECLARE(name) decltype(&::nccl##name) name = nullptr;
  QST_NCCL_FUNCTIONS(QST_NCCL_DECLARE)
#undef QST_NCCL_DECLARE

  // libnccl.so.2 from where the dynamic linker looks. kFailedPrecondition: not there, or too old; says what to do.
  static absl::StatusOr<const NcclLibrary*> Get();

  // "2.28.9"
  std::string version() const {
    int version = 0;
    GetVersion(&version);
    return absl::StrCat(version / 10000, ".", version / 100 % 100, ".", version % 100);
  }
};

}  // namespace qst

#endif  // QST_WORKER_STREAM_NCCL_LIBRARY_H_
