// The data sets of the store: names for contents. A content is known by its sha256 and kept once, whatever its names.
#ifndef QST_SERVER_DATASET_MANAGER_H_
#define QST_SERVER_DATASET_MANAGER_H_

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "proto/qst/v1/coordinator.pb.h"
#include "server/dataset_writer.h"
#include "server/executor.h"
#include "server/job_store/job_store.h"
#include "server/store_layout.h"

namespace qst {

// Lives on the control loop.
class DatasetManager {
 public:
  DatasetManager(Executor* executor, JobStore* store, StoreLayout layout)
      : executor_(executor), store_(store), layout_(std::move(layout)) {}

  // Whether a job that is not over uses the data set with this id.
  void SetInUse(std::function<bool(const std::string& id)> in_use) { in_use_ = std::move(in_use); }

  // Before an upload: is the name well-formed (may be empty), and free as far as can be said without the content?
  // `sha256` as announced, may be empty. kInvalidArgument, kAlreadyExists.
  absl::Status CheckName(const std::string& name, const std::string& sha256);
  // After an upload: enters what the writer put in its place. A content may have several names. kAlreadyExists: the
  // name belongs to another content.
  absl::StatusOr<v1::UploadDatasetResponse> Add(const std::string& name, const ReceivedDataset& received);
  // One for each name, and one for each content without any.
  absl::StatusOr<std::vector<v1::Dataset>> List();
  // By name: takes the name away, and the content with the last one. By id: the content with all its names.
  // kNotFound; kFailedPrecondition: a job that is not over uses it.
  absl::Status Delete(const std::string& name_or_id);

  // By name or id. kNotFound names `field` and `qst dataset list`.
  absl::StatusOr<v1::Dataset> Resolve(const std::string& name_or_id, absl::string_view field);
  // Where its content lies.
  std::string PathOf(const v1::Dataset& dataset) const {
    return layout_.DatasetPath(dataset.id(), dataset.file_name());
  }

 private:
  Executor* const executor_;
  JobStore* const store_;
  const StoreLayout layout_;
  std::function<bool(const std::string&)> in_use_;
};

}  // namespace qst

#endif  // QST_SERVER_DATASET_MANAGER_H_
