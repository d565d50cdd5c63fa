// Test operands: matrices with guard bytes and chosen layout, deterministic random numbers, comparisons.
#ifndef QST_KERNELS_TESTING_TEST_MATRIX_H_
#define QST_KERNELS_TESTING_TEST_MATRIX_H_

#include <cstdint>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/tensor.h"
#include "kernels/testing/test_memory.h"

namespace qst {

// A float64 matrix, contiguous: operands and results of the references.
struct DMatrix {
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::vector<double> values;

  DMatrix() = default;
  DMatrix(std::int64_t r, std::int64_t c) : rows(r), cols(c), values(r * c, 0.0) {}
  double& at(std::int64_t i, std::int64_t j) { return values[i * cols + j]; }
  double at(std::int64_t i, std::int64_t j) const { return values[i * cols + j]; }
};

// The same numbers on every platform (splitmix64; no library distribution).
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}
  std::uint64_t Next();
  double Uniform(double low, double high);
  double Normal();                         // about: a sum of twelve uniform numbers
  std::int64_t Below(std::int64_t limit);  // in [0, limit)
  DMatrix NormalMatrix(std::int64_t rows, std::int64_t cols, double scale = 1.0);
  std::vector<std::int32_t> Indices(std::int64_t n, std::int64_t limit);

 private:
  std::uint64_t state_;
};

// Where a test matrix begins: aligned to its elements and nothing more, so that vectors of them are misaligned, or as
// well as an allocation is.
enum class TestStart { kMisaligned, kAligned };

// A matrix of f32, f16 or bf16 with guard bytes before, behind, and between rows if ld > cols.
class TestMatrix {
 public:
  // Elements start as NaN, so that an op that forgets one is seen.
  TestMatrix(std::int64_t rows, std::int64_t cols, DType dtype = DType::kF32, std::int64_t padding = 0,
             TestStart start = TestStart::kMisaligned);
  // Rounds values to dtype.
  explicit TestMatrix(const DMatrix& values, DType dtype = DType::kF32, std::int64_t padding = 0,
                      TestStart start = TestStart::kMisaligned);

  MatrixView view();
  ConstMatrixView view() const;
  operator MatrixView() { return view(); }             // NOLINT: stands for its view in op calls.
  operator ConstMatrixView() const { return view(); }  // NOLINT
  float* data() { return view().row<float>(0); }

  std::int64_t rows() const { return rows_; }
  std::int64_t cols() const { return cols_; }
  DMatrix ToDouble() const;
  // The elements' bytes without padding, for comparisons bit by bit.
  std::string Bits() const;
  // Bits of rows [begin, end).
  std::string Bits(std::int64_t begin, std::int64_t end) const;
  bool GuardsIntact() const;

 private:
  std::int64_t Offset(std::int64_t i, std::int64_t j) const;  // bytes

  std::int64_t rows_;
  std::int64_t cols_;
  std::int64_t ld_;
  DType dtype_;
  TestStart start_;
  TestVector<unsigned char> bytes_;
};

// What rounding to dtype makes of the values: what an op with such an input really reads.
DMatrix Rounded(const DMatrix& values, DType dtype);

// Relative tolerance of a float32 result behind n roundings that fall either way.
double Tolerance(std::int64_t n);
// Half a unit in the last place of dtype, relative.
double RoundingError(DType dtype);

// Every |actual - expected| <= relative * max(|expected|, scale); scale < 0 stands for the root mean square of
// expected. NaN equals NaN and infinities equal themselves, only.
::testing::AssertionResult IsClose(const DMatrix& actual, const DMatrix& expected, double relative,
                                   double scale = -1.0);
::testing::AssertionResult IsClose(const TestMatrix& actual, const DMatrix& expected, double relative,
                                   double scale = -1.0);

}  // namespace qst

#endif  // QST_KERNELS_TESTING_TEST_MATRIX_H_
