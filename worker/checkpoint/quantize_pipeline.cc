#include "worker/checkpoint/quantize_pipeline.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/quant/quant4_error.h"
#include "proto/support/status_macros.h"

namespace qst {
namespace {

// Elements that are read at a time: whole blocks of every size, and few enough for a core's own cache.
constexpr std::int64_t kChunkElems = 1 << 15;

// A result takes about a seventh of what its weight takes as float32, so this many times the largest weight in results
// is less than three times the largest weight.
constexpr std::int64_t kMaxAhead = 16;

// Calls use(values, count) -> absl::Status with a tensor's elements as float32, chunk by chunk.
template <typename Use>
absl::Status ForEachChunk(const TensorSource& source, const ModelTensor& tensor, const Use& use) {
  std::vector<float> values(static_cast<std::size_t>(std::min(kChunkElems, tensor.num_elems())));
  for (std::int64_t first = 0; first < tensor.num_elems(); first += kChunkElems) {
    const std::int64_t count = std::min(kChunkElems, tensor.num_elems() - first);
    QST_RETURN_IF_ERROR(source.ReadFloat(tensor.name, first, count, values.data()));
    QST_RETURN_IF_ERROR(use(values.data(), count));
  }
  return absl::OkStatus();
}

}  // namespace

QuantizePipeline::QuantizePipeline(const TensorSource& source, const ImportPlan& plan, int num_threads)
    : source_(source), plan_(plan), results_(plan.items.size()) {
  std::int64_t largest = 0;
  for (std::size_t i = 0; i < plan.items.size(); ++i) {
    if (!plan.items[i].is_quantized) continue;
    queue_.push_back(i);
    largest = std::max(largest, plan.items[i].tensor.num_elems());
  }
  // In elements being worked on or waiting as results.
  budget_elems_ = std::min<std::int64_t>(kMaxAhead, std::int64_t{num_threads} + 2) * largest;
  const std::size_t num_useful = std::min<std::size_t>(static_cast<std::size_t>(num_threads), queue_.size());
  for (std::size_t i = 0; i < num_useful; ++i) threads_.emplace_back([this] { Run(); });
}

QuantizePipeline::~QuantizePipeline() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

absl::StatusOr<QuantizedWeight> QuantizePipeline::Take(std::size_t item) {
  std::unique_lock<std::mutex> lock(mutex_);
  changed_.wait(lock, [&] { return results_[item] != nullptr; });
  const std::unique_ptr<absl::StatusOr<QuantizedWeight>> result = std::move(results_[item]);
  pending_elems_ -= plan_.items[item].tensor.num_elems();
  lock.unlock();
  changed_.notify_all();
  return std::move(*result);
}

void QuantizePipeline::Run() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (true) {
    // Claiming an item and its memory in one step, in order: else a later item could hold the memory that an
    // earlier one waits for, while the writer waits for the earlier one.
    changed_.wait(lock, [&] {
      return stopping_ || next_ == queue_.size() || pending_elems_ == 0 ||
             pending_elems_ + ElemsOf(next_) <= budget_elems_;
    });
    if (stopping_ || next_ == queue_.size()) return;
    const std::size_t item = queue_[next_];
    pending_elems_ += ElemsOf(next_);
    ++next_;
    lock.unlock();
    auto result = std::make_unique<absl::StatusOr<QuantizedWeight>>(Make(plan_.items[item]));
    lock.lock();
    results_[item] = std::move(result);
    changed_.notify_all();
  }
}

absl::StatusOr<QuantizedWeight> QuantizePipeline::Make(const ImportItem& item) const {
  const ModelTensor& tensor = item.tensor;
  QuantizedWeight weight;
  if (item.prequantized != nullptr) {
    QST_ASSIGN_OR_RETURN(weight.tensor, source_.ReadQuant4(tensor.name));
    source_.Release(tensor.name);
    return weight;
  }
  const StoreQuantization& wanted = *plan_.quantization;
  const Quant4Options options = {wanted.type, static_cast<int>(wanted.block_size), wanted.double_quant};
  // Read twice, never held: reading a chunk again costs less than the memory of a whole weight, which the system would
  // have to clear first. The second time is for the error, which is known once constants are double-quantized.
  QST_ASSIGN_OR_RETURN(Quant4Builder builder, Quant4Builder::Create(tensor.shape[0], tensor.shape[1], options));
  QST_RETURN_IF_ERROR(ForEachChunk(source_, tensor, [&](const float* values, std::int64_t count) {
    const absl::Status appended = builder.Append(values, count);
    return appended.ok() ? appended : Annotate(appended, absl::StrCat("tensor '", tensor.name, "'"));
  }));
  QST_ASSIGN_OR_RETURN(weight.tensor, builder.Finish());
  Quant4Error error(weight.tensor.view());
  QST_RETURN_IF_ERROR(ForEachChunk(
      source_, tensor, [&](const float* values, std::int64_t count) { return error.Append(values, count); }));
  source_.Release(tensor.name);
  weight.squared_error = error.squared_error();
  weight.squared_norm = error.squared_norm();
  return weight;
}

}  // namespace qst
