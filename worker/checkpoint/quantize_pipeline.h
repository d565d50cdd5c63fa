// The part of an import that takes the time: reads linear weights and quantizes them, on several threads, ahead of the
// one that writes.
#ifndef QST_WORKER_CHECKPOINT_QUANTIZE_PIPELINE_H_
#define QST_WORKER_CHECKPOINT_QUANTIZE_PIPELINE_H_

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/quant/quant4.h"
#include "worker/checkpoint/import_plan.h"
#include "worker/checkpoint/tensor_source.h"

namespace qst {

// A linear weight in 4 bit, and what that has cost.
struct QuantizedWeight {
  Quant4Tensor tensor;
  // Sums over all elements, of (quantized - original)^2 and of original^2. 0 for a weight that came quantized.
  double squared_error = 0.0;
  double squared_norm = 0.0;
};

// Quantizes the plan's linear weights, or reads those that the source has in 4 bit, in the order of the plan. How far
// ahead of Take is bounded by memory: less than three times what the largest weight takes as float32. The results do
// not depend on num_threads. Take is called from one thread.
class QuantizePipeline {
 public:
  // Starts the threads. source and plan must outlive the pipeline.
  QuantizePipeline(const TensorSource& source, const ImportPlan& plan, int num_threads);
  // Stops, and waits for weights at hand.
  ~QuantizePipeline();
  QuantizePipeline(const QuantizePipeline&) = delete;
  QuantizePipeline& operator=(const QuantizePipeline&) = delete;

  // Waits for an item's result and takes it. Items must be taken in the order of the plan. Errors name the tensor.
  absl::StatusOr<QuantizedWeight> Take(std::size_t item);

 private:
  void Run();
  std::int64_t ElemsOf(std::size_t position) const { return plan_.items[queue_[position]].tensor.num_elems(); }
  absl::StatusOr<QuantizedWeight> Make(const ImportItem& item) const;

  const TensorSource& source_;
  const ImportPlan& plan_;
  std::vector<std::size_t> queue_;  // items to quantize, in order
  std::int64_t budget_elems_ = 0;

  std::mutex mutex_;
  std::condition_variable changed_;
  std::size_t next_ = 0;            // position in queue_ of the first item not claimed
  std::int64_t pending_elems_ = 0;  // claimed and not yet taken
  bool stopping_ = false;
  std::vector<std::unique_ptr<absl::StatusOr<QuantizedWeight>>> results_;
  std::vector<std::thread> threads_;
};

}  // namespace qst

#endif  // QST_WORKER_CHECKPOINT_QUANTIZE_PIPELINE_H_
