#include "worker/checkpoint/tensor_source.h"

#include "absl/strings/str_cat.h"

namespace qst {

absl::Status CheckReadRange(const TensorInfo* info, absl::string_view where, absl::string_view name, std::int64_t first,
                            std::int64_t count) {
  if (info == nullptr) return absl::NotFoundError(absl::StrCat(where, ": no tensor '", name, "'"));
  if (first < 0 || count < 0 || first > info->num_elems || count > info->num_elems - first) {
    return absl::InvalidArgumentError(absl::StrCat(where, ": tensor '", name, "': ", count, " elements from ", first,
                                                   " asked for, it has ", info->num_elems));
  }
  return absl::OkStatus();
}

}  // namespace qst
