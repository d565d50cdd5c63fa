// Ranks that are threads of one process: buffers change hands, nothing is copied.
#ifndef QST_WORKER_STREAM_INPROC_TRANSPORT_H_
#define QST_WORKER_STREAM_INPROC_TRANSPORT_H_

#include <memory>
#include <string>
#include <vector>

#include "worker/stream/transport.h"

namespace qst {

// Where the ranks of one communicator meet. Kept alive by its endpoints.
class InprocHub : public std::enable_shared_from_this<InprocHub> {
 public:
  // names[rank] goes into messages ("stage 0 on worker w1").
  static std::shared_ptr<InprocHub> Create(std::vector<std::string> names);
  ~InprocHub();
  InprocHub(const InprocHub&) = delete;
  InprocHub& operator=(const InprocHub&) = delete;

  // The end of one rank; once per rank. Ranks whose end was never taken simply stay silent.
  std::unique_ptr<Transport> Endpoint(int rank);

 private:
  struct State;
  class EndpointTransport;
  class Pending;

  explicit InprocHub(std::vector<std::string> names);

  std::unique_ptr<State> state_;
};

}  // namespace qst

#endif  // QST_WORKER_STREAM_INPROC_TRANSPORT_H_
