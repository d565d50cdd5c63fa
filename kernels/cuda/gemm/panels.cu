#include <cuda_runtime.h>

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "kernels/cuda/check.h"
#include "kernels/cuda/gemm/panels.cuh"
#include "kernels/cuda/gemm/plan.h"
#include "kernels/cuda/gemm/rows.cuh"
#include "kernels/cuda/quant4.cuh"
#include "kernels/cuda/vector_io.cuh"
#include "proto/support/status_macros.h"

namespace qst {
namespace cuda {

absl::StatusOr<LinearState*> LinearState::Of(Stream& stream) {
  if (stream.linear == nullptr) {
    std::shared_ptr<LinearState> state(new LinearState(&stream));
    QST_RETURN_IF_ERROR(state->Init());
    stream.linear = std::move(state);
  }
  return static_cast<LinearState*>(stream.linear.get());
}

absl::Status LinearState::Init() {
  QST_RETURN_IF_ERROR(blas.AllocateWorkspace());
  for (Buffer& buffer : buffers_) {
    QST_CUDA_RETURN_IF_ERROR(cudaEventCreateWithFlags(&buffer.filled, cudaEventDisableTiming));
    QST_CUDA_RETURN_IF_ERROR(cudaEventCreateWithFlags(&buffer.used, cudaEventDisableTiming));
  }
  return absl::OkStatus();
}

LinearState::~LinearState() {
  for (const Buffer& buffer : buffers_) {
    stream_->device->Free(buffer.data);
    if (buffer.filled != nullptr) cudaEventDestroy(buffer.filled);
    if (buffer.used != nullptr) cudaEventDestroy(buffer.used);
  }
}

absl::Status LinearState::Reserve(std::int64_t num_bytes) {
  if (num_bytes <= buffer_bytes_) return absl::OkStatus();
  QST_RETURN_IF_ERROR(CheckNotCapturing(*stream_, "larger panels"));
  ++stream_->memory_generation;
  QST_CUDA_RETURN_IF_ERROR(cudaStreamSynchronize(stream_->unpack_handle));
  QST_CUDA_RETURN_IF_ERROR(cudaStreamSynchronize(stream_->handle));
  buffer_bytes_ = 0;
  for (Buffer& buffer : buffers_) {
    stream_->device->Free(buffer.data);
    buffer.data = nullptr;
  }
  for (Buffer& buffer : buffers_) {
    QST_ASSIGN_OR_RETURN(buffer.data, stream_->device->Allocate(num_bytes));
  }
  buffer_bytes_ = num_bytes;
  return absl::OkStatus();
}

absl::StatusOr<WeightPanels> WeightPanels::Make(Stream& stream, LinearState& state, const WeightView& w,
                                                DType compute) {
  WeightPanels panels(&stream, &state, w, compute);
  panels.is_direct_ = !w.is_quantized && w.dense.dtype == compute && RowsAreAligned(w.dense);
  if (panels.is_direct_) {
    panels.rows_ = w.rows();
    panels.ld_ = w.rows() == 1 ? PaddedCols(w.cols(), compute) : w.dense.ld;
    return panels;
  }
  panels.rows_ = PanelRows(w.rows(), w.cols(), compute, state.limits);
  panels.ld_ = PaddedCols(w.cols(), compute);
  QST_RETURN_IF_ERROR(state.Reserve(PanelBytes(w.rows(), w.cols(), compute, state.limits)));
  return panels;
}

absl::StatusOr<const void*> WeightPanels::Begin(std::int64_t begin, std::int64_t end) {
  if (is_direct_) return static_cast<const void*>(Rows(w_.dense, begin, end).data);
  buffer_ = &state_->buffers_[state_->next_];
  state_->next_ = (state_->next_ + 1) % LinearState::kNumBuffers;
  const MatrixView panel{buffer_->data, compute_, end - begin, w_.cols(), ld_};
  if (!w_.is_quantized) {
    // A dense weight may just have been written (the side network's by its optimizer), so it keeps the order of
    // `handle`. The event is of an unpacking that no product waited for, because an op failed; a graph cannot wait for
    // it, nor need it, as its first run did.
    if (!stream_->is_capturing) {
      QST_CUDA_RETURN_IF_ERROR(cudaStreamWaitEvent(stream_->handle, buffer_->filled, 0));
    }
    QST_RETURN_IF_ERROR(CopyRows(*stream_, Rows(w_.dense, begin, end), panel));
    return static_cast<const void*>(buffer_->data);
  }
  QST_RETURN_IF_ERROR(CheckNotCapturing(*stream_, "unpacking a 4-bit weight on a stream of its own"));
  QST_CUDA_RETURN_IF_ERROR(cudaStreamWaitEvent(stream_->unpack_handle, buffer_->used, 0));
  if (stream_->unpack_must_wait) {
    // `filled` is free for it: what it marked before lies behind us on unpack_handle.
    QST_CUDA_RETURN_IF_ERROR(cudaEventRecord(buffer_->filled, stream_->handle));
    QST_CUDA_RETURN_IF_ERROR(cudaStreamWaitEvent(stream_->unpack_handle, buffer_->filled, 0));
    stream_->unpack_must_wait = false;
  }
  QST_RETURN_IF_ERROR(DequantizeOn(*stream_, stream_->unpack_handle, w_.quant4, begin, panel));
  QST_CUDA_RETURN_IF_ERROR(cudaEventRecord(buffer_->filled, stream_->unpack_handle));
  QST_CUDA_RETURN_IF_ERROR(cudaStreamWaitEvent(stream_->handle, buffer_->filled, 0));
  return static_cast<const void*>(buffer_->data);
}

absl::Status WeightPanels::End() {
  // After a graph, unpack_handle waits for all of `handle` (Graph::Launch).
  if (is_direct_ || stream_->is_capturing) return absl::OkStatus();
  return ToStatus(cudaEventRecord(buffer_->used, stream_->handle), "cudaEventRecord");
}

}  // namespace cuda
}  // namespace qst
