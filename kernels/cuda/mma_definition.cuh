// The instructions of mma.cuh as plain code, for the shim: what a lane gets is computed from what all lanes bring.
// Included by mma.cuh only.
#ifndef QST_KERNELS_CUDA_MMA_DEFINITION_CUH_
#define QST_KERNELS_CUDA_MMA_DEFINITION_CUH_

#include <cstdint>
#include <cstring>
#include <vector>

#include "kernels/cuda/numeric.cuh"

namespace qst {
namespace cuda {

using SharedAddress = std::uintptr_t;

inline SharedAddress SharedAddressOf(const void* shared) { return reinterpret_cast<SharedAddress>(shared); }

namespace mma_definition {

template <typename T>
float HalfOf(std::uint32_t pair, int index) {
  const std::uint16_t bits = static_cast<std::uint16_t>(index == 0 ? pair : pair >> 16);
  T value;
  std::memcpy(&value, &bits, sizeof(value));
  return ToFloat(value);
}

// Two neighbours of a row, or of a column if `is_transposed`, of the m-th of the four matrices whose rows' addresses
// the lanes bring.
inline std::uint32_t PairOf(const SharedAddress* addresses, int m, bool is_transposed) {
  const int lane = threadIdx.x % kWarpSize;
  std::uint32_t pair = 0;
  for (int half = 0; half < 2; ++half) {
    const int first = lane / 4;
    const int second = 2 * (lane % 4) + half;
    const int row = is_transposed ? second : first;
    const int column = is_transposed ? first : second;
    std::uint16_t bits;
    std::memcpy(&bits, reinterpret_cast<const std::uint16_t*>(addresses[8 * m + row]) + column, sizeof(bits));
    pair |= static_cast<std::uint32_t>(bits) << (16 * half);
  }
  return pair;
}

// Copies that a thread has started. They happen when they are waited for, and leave nonsense in their place until
// then: a kernel that reads too early, or starts a copy while others still read, is seen.
struct PendingCopies {
  struct Copy {
    void* shared;
    const void* global;  // nullptr: zeros
    int group;
  };
  std::vector<Copy> copies;
  int num_groups = 0;

  static PendingCopies& OfThread() {
    static std::vector<PendingCopies> threads(1024);
    return threads[(threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x];
  }
};

}  // namespace mma_definition

template <typename T>
void Mma(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
  struct Operands {
    std::uint32_t a[4];
    std::uint32_t b[2];
  };
  const Operands* const lanes = ::qst::cuda_shim::WarpGather(Operands{{a[0], a[1], a[2], a[3]}, {b0, b1}});
  const int lane = threadIdx.x % kWarpSize;
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + 8 * (i / 2);
    const int column = 2 * (lane % 4) + i % 2;
    double sum = static_cast<double>(c[i]);
    for (int k = 0; k < 16; ++k) {
      const std::uint32_t a_pair = lanes[row % 8 * 4 + k % 8 / 2].a[row / 8 + k / 8 * 2];
      const std::uint32_t b_pair = lanes[column * 4 + k % 8 / 2].b[k / 8];
      sum += static_cast<double>(mma_definition::HalfOf<T>(a_pair, k % 2)) *
             static_cast<double>(mma_definition::HalfOf<T>(b_pair, k % 2));
    }
    c[i] = static_cast<float>(sum);
  }
}

inline void MmaTf32(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
  struct Operands {
    std::uint32_t a[4];
    std::uint32_t b[2];
  };
  const Operands* const lanes = ::qst::cuda_shim::WarpGather(Operands{{a[0], a[1], a[2], a[3]}, {b0, b1}});
  const int lane = threadIdx.x % kWarpSize;
  // The instruction does not look at the last 13 bits.
  const auto value = [](std::uint32_t bits) { return static_cast<double>(__uint_as_float(bits & ~0x1fffu)); };
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + 8 * (i / 2);
    const int column = 2 * (lane % 4) + i % 2;
    double sum = static_cast<double>(c[i]);
    for (int k = 0; k < 8; ++k) {
      sum += value(lanes[row % 8 * 4 + k % 4].a[row / 8 + k / 4 * 2]) * value(lanes[column * 4 + k % 4].b[k / 4]);
    }
    c[i] = static_cast<float>(sum);
  }
}

inline std::uint32_t RoundToTf32(float x) {
  const std::uint32_t bits = __float_as_uint(x);
  // Infinity stays, NaN stays one.
  if ((bits & 0x7f800000u) == 0x7f800000u) return (bits & ~0x1fffu) | ((bits & 0x7fffffu) != 0 ? 0x400000u : 0u);
  return (bits + 0x1000u) & ~0x1fffu;
}

inline void LoadMatrices(std::uint32_t (&r)[4], SharedAddress row) {
  const SharedAddress* const addresses = ::qst::cuda_shim::WarpGather(row);
  for (int m = 0; m < 4; ++m) r[m] = mma_definition::PairOf(addresses, m, /*is_transposed=*/false);
}

inline void LoadMatricesTransposed(std::uint32_t (&r)[4], SharedAddress row) {
  const SharedAddress* const addresses = ::qst::cuda_shim::WarpGather(row);
  for (int m = 0; m < 4; ++m) r[m] = mma_definition::PairOf(addresses, m, /*is_transposed=*/true);
}

inline void CopyAsync16(SharedAddress address, const void* global, bool is_valid) {
  void* const shared = reinterpret_cast<void*>(address);
  mma_definition::PendingCopies& pending = mma_definition::PendingCopies::OfThread();
  std::memset(shared, 0xff, 16);
  pending.copies.push_back({shared, is_valid ? global : nullptr, pending.num_groups});
}

inline void CopyAsyncCommit() { ++mma_definition::PendingCopies::OfThread().num_groups; }

template <int kPending>
void CopyAsyncWait() {
  mma_definition::PendingCopies& pending = mma_definition::PendingCopies::OfThread();
  std::size_t num_done = 0;
  for (const mma_definition::PendingCopies::Copy& copy : pending.copies) {
    if (copy.group >= pending.num_groups - kPending) break;
    if (copy.global != nullptr) {
      std::memcpy(copy.shared, copy.global, 16);
    } else {
      std::memset(copy.shared, 0, 16);
    }
    ++num_done;
  }
  pending.copies.erase(pending.copies.begin(), pending.copies.begin() + num_done);
}

template <typename T>
std::uint32_t PackPair(float low, float high) {
  const T values[2] = {FromFloat<T>(low), FromFloat<T>(high)};
  std::uint32_t pair;
  std::memcpy(&pair, values, sizeof(pair));
  return pair;
}

}  // namespace cuda
}  // namespace qst

#endif  // QST_KERNELS_CUDA_MMA_DEFINITION_CUH_
