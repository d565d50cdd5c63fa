// GoogleTest helpers for absl::Status: QST_ASSERT_OK, QST_EXPECT_OK, StatusIs(code, message matcher).
#ifndef QST_PROTO_SUPPORT_STATUS_MATCHERS_H_
#define QST_PROTO_SUPPORT_STATUS_MATCHERS_H_

#include <ostream>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace qst {

inline const absl::Status& GetStatus(const absl::Status& status) { return status; }
template <typename T>
const absl::Status& GetStatus(const absl::StatusOr<T>& value) {
  return value.status();
}

MATCHER_P(StatusIs, code, std::string("has status code ") + absl::StatusCodeToString(code)) {
  *result_listener << "is " << GetStatus(arg).ToString();
  return GetStatus(arg).code() == code;
}

MATCHER_P2(StatusIs, code, message, std::string("has status code ") + absl::StatusCodeToString(code)) {
  *result_listener << "is " << GetStatus(arg).ToString();
  return GetStatus(arg).code() == code &&
         testing::ExplainMatchResult(message, std::string(GetStatus(arg).message()), result_listener);
}

}  // namespace qst

#define QST_ASSERT_OK(expr)                                    \
  do {                                                         \
    const auto& qst_value_ = (expr);                           \
    ASSERT_TRUE(::qst::GetStatus(qst_value_).ok()) << ::qst::GetStatus(qst_value_).ToString(); \
  } while (false)

#define QST_EXPECT_OK(expr)                                    \
  do {                                                         \
    const auto& qst_value_ = (expr);                           \
    EXPECT_TRUE(::qst::GetStatus(qst_value_).ok()) << ::qst::GetStatus(qst_value_).ToString(); \
  } while (false)

#endif  // QST_PROTO_SUPPORT_STATUS_MATCHERS_H_
