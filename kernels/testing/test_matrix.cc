#include "kernels/testing/test_matrix.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/dtype_convert.h"

namespace qst {
namespace {

constexpr std::int64_t kGuardBytes = 64;
constexpr unsigned char kGuard = 0xa5;

}  // namespace

std::uint64_t Random::Next() {
  state_ += 0x9e3779b97f4a7c15u;
  std::uint64_t z = state_;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

double Random::Uniform(double low, double high) {
  const double unit = static_cast<double>(Next() >> 11) / 9007199254740992.0;
  return low + (high - low) * unit;
}

double Random::Normal() {
  double sum = -6.0;
  for (int i = 0; i < 12; ++i) sum += Uniform(0.0, 1.0);
  return sum;
}

std::int64_t Random::Below(std::int64_t limit) { return static_cast<std::int64_t>(Next() >> 1) % limit; }

DMatrix Random::NormalMatrix(std::int64_t rows, std::int64_t cols, double scale) {
  DMatrix m(rows, cols);
  // Values that float32 holds exactly: the reference and the op see the same operands.
  for (double& value : m.values) value = static_cast<double>(static_cast<float>(scale * Normal()));
  return m;
}

std::vector<std::int32_t> Random::Indices(std::int64_t n, std::int64_t limit) {
  std::vector<std::int32_t> indices(n);
  for (std::int32_t& index : indices) index = static_cast<std::int32_t>(Below(limit));
  return indices;
}

TestMatrix::TestMatrix(std::int64_t rows, std::int64_t cols, DType dtype, std::int64_t padding, TestStart start)
    : rows_(rows), cols_(cols), ld_(cols + padding), dtype_(dtype), start_(start) {
  // One element past the guard's alignment makes vector loads misaligned; the room is there in any case.
  const std::int64_t size = kGuardBytes + DTypeBytes(dtype) + rows * ld_ * DTypeBytes(dtype) + kGuardBytes;
  bytes_.assign(size, kGuard);
  for (std::int64_t i = 0; i < rows; ++i) {
    for (std::int64_t j = 0; j < cols; ++j) std::memset(&bytes_[Offset(i, j)], 0xff, DTypeBytes(dtype));
  }
}

TestMatrix::TestMatrix(const DMatrix& values, DType dtype, std::int64_t padding, TestStart start)
    : TestMatrix(values.rows, values.cols, dtype, padding, start) {
  for (std::int64_t i = 0; i < rows_; ++i) {
    for (std::int64_t j = 0; j < cols_; ++j) {
      const float value = static_cast<float>(values.at(i, j));
      const std::uint16_t narrow = dtype == DType::kF16 ? F32ToF16(value) : F32ToBF16(value);
      if (dtype == DType::kF32) {
        std::memcpy(&bytes_[Offset(i, j)], &value, sizeof(value));
      } else {
        std::memcpy(&bytes_[Offset(i, j)], &narrow, sizeof(narrow));
      }
    }
  }
}

std::int64_t TestMatrix::Offset(std::int64_t i, std::int64_t j) const {
  const std::int64_t lead = start_ == TestStart::kMisaligned ? 1 : 0;
  return kGuardBytes + (lead + i * ld_ + j) * DTypeBytes(dtype_);
}

MatrixView TestMatrix::view() { return MatrixView{bytes_.data() + Offset(0, 0), dtype_, rows_, cols_, ld_}; }

ConstMatrixView TestMatrix::view() const {
  return ConstMatrixView(bytes_.data() + Offset(0, 0), dtype_, rows_, cols_, ld_);
}

DMatrix TestMatrix::ToDouble() const {
  EXPECT_TRUE(SynchronizeTestDevice());
  DMatrix m(rows_, cols_);
  for (std::int64_t i = 0; i < rows_; ++i) {
    for (std::int64_t j = 0; j < cols_; ++j) {
      float value;
      std::uint16_t narrow;
      if (dtype_ == DType::kF32) {
        std::memcpy(&value, &bytes_[Offset(i, j)], sizeof(value));
      } else {
        std::memcpy(&narrow, &bytes_[Offset(i, j)], sizeof(narrow));
        value = dtype_ == DType::kF16 ? F16ToF32(narrow) : BF16ToF32(narrow);
      }
      m.at(i, j) = static_cast<double>(value);
    }
  }
  return m;
}

std::string TestMatrix::Bits() const { return Bits(0, rows_); }

std::string TestMatrix::Bits(std::int64_t begin, std::int64_t end) const {
  EXPECT_TRUE(SynchronizeTestDevice());
  std::string bits;
  for (std::int64_t i = begin; i < end; ++i) {
    bits.append(reinterpret_cast<const char*>(bytes_.data()) + Offset(i, 0), cols_ * DTypeBytes(dtype_));
  }
  return bits;
}

bool TestMatrix::GuardsIntact() const {
  EXPECT_TRUE(SynchronizeTestDevice());
  std::vector<bool> is_element(bytes_.size(), false);
  for (std::int64_t i = 0; i < rows_; ++i) {
    const std::int64_t first = Offset(i, 0);
    std::fill_n(is_element.begin() + first, cols_ * DTypeBytes(dtype_), true);
  }
  for (std::size_t i = 0; i < bytes_.size(); ++i) {
    if (!is_element[i] && bytes_[i] != kGuard) return false;
  }
  return true;
}

DMatrix Rounded(const DMatrix& values, DType dtype) { return TestMatrix(values, dtype).ToDouble(); }

double Tolerance(std::int64_t n) {
  constexpr double kHalfUnit = 5.9604644775390625e-08;
  return kHalfUnit * (8.0 + 4.0 * std::sqrt(static_cast<double>(n)));
}

double RoundingError(DType dtype) {
  switch (dtype) {
    case DType::kF16:
      return 4.8828125e-4;
    case DType::kBF16:
      return 3.90625e-3;
    default:
      return 5.9604644775390625e-08;
  }
}

::testing::AssertionResult IsClose(const DMatrix& actual, const DMatrix& expected, double relative, double scale) {
  if (actual.rows != expected.rows || actual.cols != expected.cols) {
    return ::testing::AssertionFailure() << "is [" << actual.rows << ", " << actual.cols << "], expected ["
                                         << expected.rows << ", " << expected.cols << "]";
  }
  if (scale < 0.0) {
    double squares = 0.0;
    std::int64_t count = 0;
    for (const double value : expected.values) {
      if (!std::isfinite(value)) continue;
      squares += value * value;
      ++count;
    }
    scale = count == 0 ? 0.0 : std::sqrt(squares / static_cast<double>(count));
  }
  for (std::int64_t i = 0; i < expected.rows; ++i) {
    for (std::int64_t j = 0; j < expected.cols; ++j) {
      const double a = actual.at(i, j);
      const double e = expected.at(i, j);
      const double allowed = relative * std::max(std::abs(e), scale);
      const bool is_close = std::isfinite(e) ? std::abs(a - e) <= allowed : (std::isnan(e) ? std::isnan(a) : a == e);
      if (!is_close) {
        return ::testing::AssertionFailure() << "element (" << i << ", " << j << ") is " << a << ", expected " << e
                                             << ", off by " << std::abs(a - e) << ", allowed " << allowed;
      }
    }
  }
  return ::testing::AssertionSuccess();
}

::testing::AssertionResult IsClose(const TestMatrix& actual, const DMatrix& expected, double relative, double scale) {
  if (!actual.GuardsIntact()) return ::testing::AssertionFailure() << "guard bytes around the output were overwritten";
  return IsClose(actual.ToDouble(), expected, relative, scale);
}

}  // namespace qst
