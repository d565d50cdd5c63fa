// With the shim of the tests: it is part of the program.
#include "worker/stream/nccl_library.h"

namespace qst {

absl::StatusOr<const NcclLibrary*> NcclLibrary::Get() {
  static const NcclLibrary& library = *new NcclLibrary{
#define QST_NCCL_TAKE(name) &::nccl##name,
      QST_NCCL_FUNCTIONS(QST_NCCL_TAKE)
#undef QST_NCCL_TAKE
  };
  return &library;
}

}  // namespace qst
