#include "worker/backbone/device_weights.h"

#include <utility>

#include "proto/support/status_macros.h"

namespace qst {
namespace {

// Wide loads, and matrix instructions that read weights straight, want it.
constexpr std::int64_t kAlignment = 256;

}  // namespace

void DeviceWeights::AddPiece(const void* host, std::int64_t num_bytes, std::function<void(const void*)> set) {
  const auto [it, is_new] = piece_of_.emplace(std::make_pair(host, num_bytes), pieces_.size());
  if (is_new) {
    pieces_.push_back({host, num_bytes, device_bytes_});
    num_bytes_ += num_bytes;
    device_bytes_ += (num_bytes + kAlignment - 1) / kAlignment * kAlignment;
  }
  slots_.emplace_back(it->second, std::move(set));
}

void DeviceWeights::Add(ConstMatrixView* view) {
  if (view->empty()) return;
  QST_CHECK(view->ld == view->cols);
  AddPiece(view->data, view->rows * view->cols * DTypeBytes(view->dtype),
           [view](const void* device) { view->data = device; });
}

void DeviceWeights::Add(WeightView* view) {
  if (!view->is_quantized) return Add(&view->dense);
  Quant4View* const q = &view->quant4;
  AddPiece(q->packed, (q->num_elems() + 1) / 2,
           [q](const void* device) { q->packed = static_cast<const std::uint8_t*>(device); });
  if (q->absmax_codes == nullptr) {
    return AddPiece(q->absmax, q->num_blocks() * 4,
                    [q](const void* device) { q->absmax = static_cast<const float*>(device); });
  }
  AddPiece(q->absmax_codes, q->num_blocks(),
           [q](const void* device) { q->absmax_codes = static_cast<const std::uint8_t*>(device); });
  AddPiece(q->nested_absmax, (q->num_blocks() + q->nested_block_size - 1) / q->nested_block_size * 4,
           [q](const void* device) { q->nested_absmax = static_cast<const float*>(device); });
  AddPiece(q->nested_map, 256 * 4, [q](const void* device) { q->nested_map = static_cast<const float*>(device); });
}

void DeviceWeights::Add(std::vector<float> values, ConstMatrixView* view) {
  *view = ConstMatrixView();
  if (values.empty()) return;
  owned_.push_back(std::move(values));
  const std::vector<float>& owned = owned_.back();
  *view = Matrix(owned.data(), 1, static_cast<std::int64_t>(owned.size()));
  Add(view);
}

absl::Status DeviceWeights::Upload(const OpContext& ctx) {
  if (ctx.device == DeviceType::kCuda) {
    QST_ASSIGN_OR_RETURN(memory_, DeviceMemory::Allocate(ctx, device_bytes_));
    for (const Piece& piece : pieces_) {
      QST_RETURN_IF_ERROR(qst::Upload(ctx, piece.host, piece.num_bytes, memory_.as<std::uint8_t>() + piece.offset));
    }
    for (const auto& [index, set] : slots_) set(memory_.as<std::uint8_t>() + pieces_[index].offset);
    owned_.clear();
  }
  pieces_.clear();
  piece_of_.clear();
  slots_.clear();
  return absl::OkStatus();
}

}  // namespace qst
