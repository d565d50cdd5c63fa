// One communicator over two transports: ranks of this process in memory, the others over a network.
#ifndef QST_WORKER_STREAM_COMPOSITE_TRANSPORT_H_
#define QST_WORKER_STREAM_COMPOSITE_TRANSPORT_H_

#include <memory>
#include <vector>

#include "worker/stream/transport.h"

namespace qst {

// Both parts have the same rank and world size. is_local[peer] says which of them leads to a peer. When one part
// fails, so does the other.
std::unique_ptr<Transport> MakeCompositeTransport(std::unique_ptr<Transport> local, std::unique_ptr<Transport> remote,
                                                  std::vector<bool> is_local);

}  // namespace qst

#endif  // QST_WORKER_STREAM_COMPOSITE_TRANSPORT_H_
