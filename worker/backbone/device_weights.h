// Frozen weights where ops read them: on CPU in place, in the mapped model file; on a GPU as a copy in its memory.
#ifndef QST_WORKER_BACKBONE_DEVICE_WEIGHTS_H_
#define QST_WORKER_BACKBONE_DEVICE_WEIGHTS_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "kernels/device_memory.h"
#include "kernels/tensor.h"

namespace qst {

// Views are added first, with the host's pointers in them; Upload then puts the device's there. So what a stage takes
// is known before any of it is allocated. Bytes that several views share (tied embeddings, code maps) are copied once.
class DeviceWeights {
 public:
  DeviceWeights() = default;
  DeviceWeights(const DeviceWeights&) = delete;
  DeviceWeights& operator=(const DeviceWeights&) = delete;

  // The view must stay where it is until Upload; its bytes on the host until then, on CPU for the life of this object.
  // Dense matrices are contiguous.
  void Add(WeightView* view);
  void Add(ConstMatrixView* view);
  // Takes the values, and makes *view [1, n] of them; an empty view for none.
  void Add(std::vector<float> values, ConstMatrixView* view);

  // Of all that was added.
  std::int64_t num_bytes() const { return num_bytes_; }
  // What Upload allocates on a GPU: the same, each piece aligned.
  std::int64_t device_bytes() const { return device_bytes_; }

  // Once, after the last Add. On CPU nothing is to be done. On CUDA the copies are enqueued; the host's bytes are not
  // needed any more when the call returns, and this object must outlive the work that reads the device's.
  // kResourceExhausted: beyond the device's budget.
  absl::Status Upload(const OpContext& ctx);

 private:
  struct Piece {
    const void* host = nullptr;
    std::int64_t num_bytes = 0;
    std::int64_t offset = 0;  // in memory_
  };

  // `set` puts a pointer into the view.
  void AddPiece(const void* host, std::int64_t num_bytes, std::function<void(const void*)> set);

  std::vector<Piece> pieces_;
  std::map<std::pair<const void*, std::int64_t>, std::size_t> piece_of_;  // by host pointer and size
  std::vector<std::pair<std::size_t, std::function<void(const void*)>>> slots_;
  std::deque<std::vector<float>> owned_;
  std::int64_t num_bytes_ = 0;
  std::int64_t device_bytes_ = 0;
  DeviceMemory memory_;
};

}  // namespace qst

#endif  // QST_WORKER_BACKBONE_DEVICE_WEIGHTS_H_
