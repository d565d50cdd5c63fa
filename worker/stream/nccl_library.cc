#include "worker/stream/nccl_library.h"

#include <dlfcn.h>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace qst {
namespace {

constexpr char kFile[] = "libnccl.so.2";
// The first with all of a non-blocking communicator's settings.
constexpr int kMinVersion = NCCL_VERSION(2, 18, 1);

absl::StatusOr<NcclLibrary> Load() {
  // Never closed: its threads may outlive the last transport.
  void* const file = dlopen(kFile, RTLD_NOW | RTLD_LOCAL);
  if (file == nullptr) {
    return absl::FailedPreconditionError(
        absl::StrCat("NCCL, which carries hidden states between GPUs, cannot be loaded: ", dlerror(),
                     "; install it, or put its folder into LD_LIBRARY_PATH"));
  }
  NcclLibrary library;
#define QST_NCCL_LOAD(name)                                                                                  \
  library.name = reinterpret_cast<decltype(library.name)>(dlsym(file, "nccl" #name));                        \
  if (library.name == nullptr) {                                                                             \
    return absl::FailedPreconditionError(absl::StrCat(kFile, " is too old: it has no function nccl" #name)); \
  }
  QST_NCCL_FUNCTIONS(QST_NCCL_LOAD)
#undef QST_NCCL_LOAD
  int version = 0;
  if (library.GetVersion(&version) != ncclSuccess || version < kMinVersion) {
    return absl::FailedPreconditionError(absl::StrCat(kFile, " is NCCL ", library.version(), ", 2.18.1 is needed"));
  }
  return library;
}

}  // namespace

absl::StatusOr<const NcclLibrary*> NcclLibrary::Get() {
  static const absl::StatusOr<NcclLibrary>& library = *new absl::StatusOr<NcclLibrary>(Load());
  if (!library.ok()) return library.status();
  return &*library;
}

}  // namespace qst
