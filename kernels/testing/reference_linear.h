// The linear ops by their definition, one element at a time in float64, with a bound on how far a float32
// result may be off; and matrices in memory that notices stray writes and that ops of every backend can reach.
#ifndef QST_KERNELS_TESTING_REFERENCE_LINEAR_H_
#define QST_KERNELS_TESTING_REFERENCE_LINEAR_H_

#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/dtype_convert.h"
#include "kernels/quant/quant4.h"
#include "kernels/tensor.h"
#include "kernels/testing/test_memory.h"

namespace qst {
namespace testing_kernels {

// A matrix between guards, its rows `ld` apart, starting `misalign` bytes off a cache line's begin. Views are for ops;
// before elements are read on the host, the device must be done (ToDouble waits).
class GuardedMatrix {
 public:
  GuardedMatrix(DType dtype, std::int64_t rows, std::int64_t cols, std::int64_t ld, int misalign = 0)
      : dtype_(dtype), rows_(rows), cols_(cols), ld_(ld), bytes_(DTypeBytes(dtype) * rows * ld + 2 * kGuard + 64) {
    std::memset(bytes_.data(), kGuardByte, bytes_.size());
    const auto address = reinterpret_cast<std::uintptr_t>(bytes_.data()) + kGuard;
    begin_ = kGuard + static_cast<std::int64_t>((64 - address % 64) % 64) + misalign;
  }
  GuardedMatrix(const GuardedMatrix&) = delete;
  GuardedMatrix& operator=(const GuardedMatrix&) = delete;

  MatrixView view() { return MatrixView{bytes_.data() + begin_, dtype_, rows_, cols_, ld_}; }

  void Set(std::int64_t i, std::int64_t j, float value) {
    unsigned char* at = Address(i, j);
    if (dtype_ == DType::kF32) {
      std::memcpy(at, &value, 4);
    } else {
      const std::uint16_t bits = dtype_ == DType::kBF16 ? F32ToBF16(value) : F32ToF16(value);
      std::memcpy(at, &bits, 2);
    }
  }
  float Get(std::int64_t i, std::int64_t j) const {
    const unsigned char* at = const_cast<GuardedMatrix*>(this)->Address(i, j);
    if (dtype_ == DType::kF32) {
      float value;
      std::memcpy(&value, at, 4);
      return value;
    }
    std::uint16_t bits;
    std::memcpy(&bits, at, 2);
    return dtype_ == DType::kBF16 ? BF16ToF32(bits) : F16ToF32(bits);
  }
  void FillNormal(std::mt19937* random) {
    std::normal_distribution<float> normal;
    for (std::int64_t i = 0; i < rows_; ++i) {
      for (std::int64_t j = 0; j < cols_; ++j) Set(i, j, normal(*random));
    }
  }

  // Every byte outside of the elements, gaps between rows included, is as it was.
  bool GuardsAreIntact() const {
    if (!SynchronizeTestDevice()) return false;
    const std::int64_t elem = DTypeBytes(dtype_);
    for (std::int64_t b = 0; b < static_cast<std::int64_t>(bytes_.size()); ++b) {
      const std::int64_t at = b - begin_;
      const bool is_element = at >= 0 && at < rows_ * ld_ * elem && at % (ld_ * elem) < cols_ * elem;
      if (!is_element && bytes_[b] != kGuardByte) return false;
    }
    return true;
  }

 private:
  static constexpr std::int64_t kGuard = 192;
  static constexpr unsigned char kGuardByte = 0xa5;
  unsigned char* Address(std::int64_t i, std::int64_t j) {
    return bytes_.data() + begin_ + (i * ld_ + j) * DTypeBytes(dtype_);
  }

  DType dtype_;
  std::int64_t rows_, cols_, ld_;
  TestVector<unsigned char> bytes_;
  std::int64_t begin_;
};

// Row-major float64 copy.
struct DoubleMatrix {
  std::int64_t rows = 0, cols = 0;
  std::vector<double> values;
  double operator()(std::int64_t i, std::int64_t j) const { return values[i * cols + j]; }

  DoubleMatrix Transposed() const {
    DoubleMatrix out{cols, rows, std::vector<double>(values.size())};
    for (std::int64_t i = 0; i < rows; ++i) {
      for (std::int64_t j = 0; j < cols; ++j) out.values[j * rows + i] = (*this)(i, j);
    }
    return out;
  }
};

inline DoubleMatrix ToDouble(const GuardedMatrix& m, std::int64_t rows, std::int64_t cols) {
  EXPECT_TRUE(SynchronizeTestDevice()) << "a kernel failed";
  DoubleMatrix out{rows, cols, {}};
  for (std::int64_t i = 0; i < rows; ++i) {
    for (std::int64_t j = 0; j < cols; ++j) out.values.push_back(m.Get(i, j));
  }
  return out;
}

inline DoubleMatrix ToDouble(const Quant4View& w) {
  std::vector<float> floats(w.num_elems());
  DequantizeRange(w, 0, w.num_elems(), floats.data());
  return DoubleMatrix{w.rows, w.cols, std::vector<double>(floats.begin(), floats.end())};
}

// What a product is added to: a result from before, and a bias [1, cols]; either may be null.
inline DoubleMatrix Start(const GuardedMatrix* before, const GuardedMatrix* bias, std::int64_t rows,
                          std::int64_t cols) {
  DoubleMatrix start{rows, cols, std::vector<double>(rows * cols)};
  for (std::int64_t i = 0; i < rows; ++i) {
    for (std::int64_t j = 0; j < cols; ++j) {
      if (before != nullptr) start.values[i * cols + j] += before->Get(i, j);
      if (bias != nullptr) start.values[i * cols + j] += bias->Get(0, j);
    }
  }
  return start;
}

// Bits of a row, so that NaN equals itself and -0 differs from 0.
inline std::vector<std::uint32_t> Bits(const GuardedMatrix& m, std::int64_t row, std::int64_t cols) {
  EXPECT_TRUE(SynchronizeTestDevice());
  std::vector<std::uint32_t> bits;
  for (std::int64_t j = 0; j < cols; ++j) bits.push_back(FloatBits(m.Get(row, j)));
  return bits;
}

// How far off a result may be besides what float32 sums are.
struct ProductTolerance {
  double sums = 1.0;      // factor of the bound of float32 sums
  double result = 0.0;    // of the result's magnitude: its rounding to a half type
  double absolute = 0.0;  // of everything else
};

// Expects actual = start + a b, each element within the worst case of k + 2 float32 multiply-adds, rounded
// twice each: (k + 2) * 2 * 2^-24 times the sum of magnitudes.
inline void ExpectIsProduct(const DoubleMatrix& a, const DoubleMatrix& b, const DoubleMatrix& start,
                            const DoubleMatrix& actual, const ProductTolerance& tolerances = {}) {
  int num_wrong = 0;
  for (std::int64_t i = 0; i < a.rows; ++i) {
    for (std::int64_t j = 0; j < b.cols; ++j) {
      double expected = start(i, j);
      double magnitude = std::fabs(expected);
      for (std::int64_t k = 0; k < a.cols; ++k) {
        expected += a(i, k) * b(k, j);
        magnitude += std::fabs(a(i, k) * b(k, j));
      }
      const double tolerance = tolerances.sums * static_cast<double>(a.cols + 2) * std::ldexp(1.0, -23) * magnitude +
                               tolerances.result * std::fabs(expected) + tolerances.absolute;
      if (!(std::fabs(actual(i, j) - expected) <= tolerance) && ++num_wrong <= 3) {
        ADD_FAILURE() << "element (" << i << ", " << j << ") of [" << a.rows << ", " << b.cols << "], k " << a.cols
                      << ": expected " << expected << " +- " << tolerance << ", actual " << actual(i, j);
      }
    }
  }
  EXPECT_EQ(num_wrong, 0);
}

}  // namespace testing_kernels
}  // namespace qst

#endif  // QST_KERNELS_TESTING_REFERENCE_LINEAR_H_
