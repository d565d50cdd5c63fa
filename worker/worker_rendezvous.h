// Data-plane addresses through the coordinator's SetKey and GetKey.
#ifndef QST_WORKER_WORKER_RENDEZVOUS_H_
#define QST_WORKER_WORKER_RENDEZVOUS_H_

#include <memory>
#include <string>

#include "proto/qst/v1/control.grpc.pb.h"
#include "worker/stream/key_value_store.h"

namespace qst {

// Keys of one plan. While the coordinator is away, both calls try again until their time is over.
class CoordinatorKeyValueStore : public KeyValueStore {
 public:
  // `stub` must outlive the store.
  CoordinatorKeyValueStore(v1::WorkerControl::StubInterface* stub, std::string plan_id)
      : stub_(stub), plan_id_(std::move(plan_id)) {}

  absl::Status Set(const std::string& key, const std::string& value) override;
  absl::StatusOr<std::string> Get(const std::string& key, absl::Duration timeout) override;

 private:
  v1::WorkerControl::StubInterface* const stub_;
  const std::string plan_id_;
};

}  // namespace qst

#endif  // QST_WORKER_WORKER_RENDEZVOUS_H_
