#include "kernels/quant/quant4_error.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "kernels/quant/codes.h"
#include "kernels/quant/quant4.h"
#include "kernels/quant/quant4_kernels.h"
#include "proto/support/status_macros.h"

namespace qst {
namespace {

constexpr std::int64_t kLanes = 8;

}  // namespace

absl::Status Quant4Error::Append(const float* original, std::int64_t count, CpuIsa isa) {
  QST_ASSIGN_OR_RETURN(const CpuIsa resolved, ResolveIsa(isa));
  const std::int64_t left = view_.num_elems() - num_elems_;
  if (count < 0 || count > left || (count < left && (count % view_.block_size != 0 || count % kLanes != 0))) {
    return absl::FailedPreconditionError(
        absl::StrCat(count, " elements given where ", left, " are left and blocks have ", view_.block_size));
  }
  // Codes are read in groups of eight, blocks must hold whole ones.
  const bool use_avx2 = resolved == CpuIsa::kAvx2 && view_.block_size % 64 == 0;
  const std::int64_t in_vectors = use_avx2 ? count / kLanes * kLanes : 0;
  AppendAvx2(original, in_vectors);
  AppendPortable(original + in_vectors, num_elems_ + in_vectors, count - in_vectors);
  num_elems_ += count;
  return absl::OkStatus();
}

void Quant4Error::AppendAvx2(const float* original, std::int64_t count) {
  std::array<float, 64> absmax;  // of blocks at hand
  const std::int64_t step = view_.block_size * static_cast<std::int64_t>(absmax.size());
  for (std::int64_t done = 0; done < count; done += step) {
    const std::int64_t num_elems = std::min(step, count - done);
    const std::int64_t first = num_elems_ + done;
    const std::int64_t num_blocks = (num_elems + view_.block_size - 1) / view_.block_size;
    for (std::int64_t b = 0; b < num_blocks; ++b) absmax[b] = BlockAbsmax(view_, first / view_.block_size + b);
    quant::avx2::AddSquaredError(view_.packed + first / 2, absmax.data(), view_.block_size, Quant4Table(view_.type),
                                 original + done, num_elems, error_.data(), norm_.data());
  }
}

void Quant4Error::AppendPortable(const float* original, std::int64_t begin, std::int64_t count) {
  std::array<float, 4096> restored;
  constexpr std::int64_t kStep = 4096;
  for (std::int64_t first = 0; first < count; first += kStep) {
    const std::int64_t num_elems = std::min(kStep, count - first);
    DequantizeRange(view_, begin + first, num_elems, restored.data());
    // Lanes side by side, so that the compiler can use vectors.
    for (std::int64_t i = 0; i < num_elems; i += kLanes) {
      const std::int64_t lanes = std::min(kLanes, num_elems - i);
      for (std::int64_t lane = 0; lane < lanes; ++lane) {
        const double value = original[first + i + lane];
        const double difference = restored[i + lane] - value;
        error_[lane] += difference * difference;
        norm_[lane] += value * value;
      }
    }
  }
}

double Quant4Error::Sum(const Lanes& lanes) {
  double sum = 0.0;
  for (const double lane : lanes) sum += lane;
  return sum;
}

}  // namespace qst
