// Propagating absl::Status without exceptions, and checks of invariants.
//
//   QST_RETURN_IF_ERROR(expr)          returns expr's status from this function unless it is OK.
//   QST_ASSIGN_OR_RETURN(lhs, expr)    lhs = value of the StatusOr expr, or returns its status.
//   QST_CHECK(condition)               aborts with file and line: for broken invariants only, never
//                                      for input, peers or files.
#ifndef QST_PROTO_SUPPORT_STATUS_MACROS_H_
#define QST_PROTO_SUPPORT_STATUS_MACROS_H_

#include <cstdio>
#include <cstdlib>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

#define QST_STATUS_CONCAT_INNER_(a, b) a##b
#define QST_STATUS_CONCAT_(a, b) QST_STATUS_CONCAT_INNER_(a, b)

#define QST_RETURN_IF_ERROR(expr)                   \
  do {                                              \
    ::absl::Status qst_status_ = (expr);            \
    if (!qst_status_.ok()) return qst_status_;      \
  } while (false)

#define QST_ASSIGN_OR_RETURN(lhs, expr) \
  QST_ASSIGN_OR_RETURN_IMPL_(QST_STATUS_CONCAT_(qst_statusor_, __LINE__), lhs, expr)

#define QST_ASSIGN_OR_RETURN_IMPL_(statusor, lhs, expr) \
  auto statusor = (expr);                               \
  if (!statusor.ok()) return statusor.status();         \
  lhs = std::move(statusor).value()

#define QST_CHECK(condition)                                                            \
  do {                                                                                  \
    if (!(condition)) {                                                                 \
      std::fprintf(stderr, "%s:%d: check failed: %s\n", __FILE__, __LINE__, #condition); \
      std::abort();                                                                     \
    }                                                                                   \
  } while (false)

namespace qst {

// The same status with "context: " before its message: says where, while the cause says what.
inline absl::Status Annotate(const absl::Status& status, absl::string_view context) {
  if (status.ok()) return status;
  return absl::Status(status.code(), absl::StrCat(context, ": ", status.message()));
}

}  // namespace qst

#endif  // QST_PROTO_SUPPORT_STATUS_MACROS_H_
