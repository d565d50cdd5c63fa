#include "worker/checkpoint/quantize_pipeline.h"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/support/status_macros.h"

namespace qst {
namespace {

constexpr std::int64_t kChunkElems = 4096;

// Memory of a weight's floats, straight from the system and back to it: an allocator may keep what it got, and the
// largest weights of a model are what its import takes.
class FloatBuffer {
 public:
  static absl::StatusOr<std::unique_ptr<FloatBuffer>> Create(std::int64_t num_elems) {
    const std::size_t num_bytes = std::max<std::size_t>(1, static_cast<std::size_t>(num_elems) * sizeof(float));
    void* data = ::mmap(nullptr, num_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED) {
      return absl::ResourceExhaustedError(absl::StrCat("no memory for ", num_bytes, " bytes of a weight"));
    }
    return std::unique_ptr<FloatBuffer>(new FloatBuffer(data, num_bytes));
  }
  ~FloatBuffer() { ::munmap(data_, num_bytes_); }
  FloatBuffer(const FloatBuffer&) = delete;
  FloatBuffer& operator=(const FloatBuffer&) = delete;

  float* data() const { return static_cast<float*>(data_); }

 private:
  FloatBuffer(void* data, std::size_t num_bytes) : data_(data), num_bytes_(num_bytes) {}
  void* data_;
  std::size_t num_bytes_;
};

// Adds a weight's squared error and squared norm. Several sums side by side, so that the compiler can use vectors.
void MeasureError(const float* values, QuantizedWeight* weight) {
  constexpr std::size_t kLanes = 8;
  const Quant4View view = weight->tensor.view();
  std::array<float, kChunkElems> restored;
  std::array<double, kLanes> error{};
  std::array<double, kLanes> norm{};
  for (std::int64_t first = 0; first < view.num_elems(); first += kChunkElems) {
    const std::int64_t count = std::min(kChunkElems, view.num_elems() - first);
    DequantizeRange(view, first, count, restored.data());
    const float* original = values + first;
    for (std::int64_t i = 0; i < count; i += kLanes) {
      const std::size_t lanes = static_cast<std::size_t>(std::min<std::int64_t>(kLanes, count - i));
      for (std::size_t lane = 0; lane < lanes; ++lane) {
        const double value = original[i + static_cast<std::int64_t>(lane)];
        const double difference = restored[static_cast<std::size_t>(i) + lane] - value;
        error[lane] += difference * difference;
        norm[lane] += value * value;
      }
    }
  }
  for (std::size_t lane = 0; lane < kLanes; ++lane) {
    weight->squared_error += error[lane];
    weight->squared_norm += norm[lane];
  }
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
  // In elements being worked on or waiting as results. A result takes a sixth of its floats; twice the largest
  // weight as floats, with results, stays below three times.
  budget_elems_ = 2 * largest;
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
  QST_ASSIGN_OR_RETURN(const std::unique_ptr<FloatBuffer> values, FloatBuffer::Create(tensor.num_elems()));
  QST_RETURN_IF_ERROR(source_.ReadFloat(tensor.name, 0, tensor.num_elems(), values->data()));
  source_.Release(tensor.name);
  absl::StatusOr<Quant4Tensor> quantized = Quantize4Bit(values->data(), tensor.shape[0], tensor.shape[1], options);
  if (!quantized.ok()) return Annotate(quantized.status(), absl::StrCat("tensor '", tensor.name, "'"));
  weight.tensor = *std::move(quantized);
  MeasureError(values->data(), &weight);
  return weight;
}

}  // namespace qst
