// What is in a data set, and how a model would see it.
#ifndef QST_WORKER_HOST_DESCRIBE_H_
#define QST_WORKER_HOST_DESCRIBE_H_

#include <atomic>

#include "absl/status/statusor.h"
#include "proto/qst/v1/control.pb.h"

namespace qst {

// Reads the whole file; everything but `dataset` is filled in. The examples that are rendered end where the answer gets
// large.
// Errors   kInvalidArgument: a row or setting that a job would refuse, by file and line. kCancelled. Others of the
// readers.
absl::StatusOr<v1::DescribeDatasetResponse> DescribeDataset(const v1::DescribeDatasetTask& task,
                                                            const std::atomic<bool>& is_cancelled);

}  // namespace qst

#endif  // QST_WORKER_HOST_DESCRIBE_H_
