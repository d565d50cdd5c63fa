// Ids of plans: "job/attempt", and "job/attempt.revision" once stages were placed again.
#ifndef QST_PROTO_SUPPORT_PLAN_ID_H_
#define QST_PROTO_SUPPORT_PLAN_ID_H_

#include <string>

namespace qst {

// The id without its revision: what job reports go by.
inline std::string AttemptOf(const std::string& plan_id) {
  const std::size_t slash = plan_id.rfind('/');
  return plan_id.substr(0, plan_id.find('.', slash == std::string::npos ? 0 : slash));
}

}  // namespace qst

#endif  // QST_PROTO_SUPPORT_PLAN_ID_H_
