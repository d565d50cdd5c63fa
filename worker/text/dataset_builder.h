// From a table to a data set: which column holds what, of what kind the rows are, and a row's fields.
#ifndef QST_WORKER_TEXT_DATASET_BUILDER_H_
#define QST_WORKER_TEXT_DATASET_BUILDER_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "worker/text/dataset.h"
#include "worker/text/table.h"

namespace qst {

// Errors as ParseDataset's, but for those of the file's format.
absl::StatusOr<Dataset> BuildDataset(absl::string_view name, DataFormat format, const Table& table,
                                     const DatasetOptions& options);

// "a, b, c and 3 more", for messages.
std::string ListNames(const std::vector<std::string>& names);

}  // namespace qst

#endif  // QST_WORKER_TEXT_DATASET_BUILDER_H_
