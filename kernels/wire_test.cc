#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/dtype_convert.h"
#include "kernels/ops.h"
#include "kernels/testing/op_test_context.h"
#include "kernels/testing/test_matrix.h"
#include "kernels/testing/test_memory.h"
#include "kernels/wire_rows.h"
#include "proto/support/status_matchers.h"

namespace qst {
namespace {

using ::testing::HasSubstr;

constexpr DType kFloats[] = {DType::kF32, DType::kF16, DType::kBF16};
constexpr DType kScaled[] = {DType::kI8, DType::kF8E4M3};
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr double kInf = std::numeric_limits<double>::infinity();

struct Size {
  std::int64_t rows;
  std::int64_t cols;
};

// Nothing, single elements, tails of vectors, rows whose codes are not aligned, more columns than a block has threads.
std::vector<Size> Sizes() { return {{0, 4}, {3, 0}, {1, 1}, {2, 7}, {3, 8}, {5, 29}, {4, 64}, {67, 33}, {2, 2500}}; }

// Wire memory between guard bytes, aligned.
class WireMemory {
 public:
  explicit WireMemory(std::int64_t num_bytes) : num_bytes_(num_bytes), bytes_(num_bytes + 3 * kGuard, 0xa5) {}

  unsigned char* data() {
    const auto address = reinterpret_cast<std::uintptr_t>(bytes_.data()) + kGuard;
    return bytes_.data() + kGuard + (kGuard - address % kGuard) % kGuard;
  }
  float scale(std::int64_t row) {
    SynchronizeTestDevice();
    float value;
    std::memcpy(&value, data() + 4 * row, 4);
    return value;
  }
  std::string Bits() {
    EXPECT_TRUE(SynchronizeTestDevice());
    return std::string(reinterpret_cast<const char*>(data()), num_bytes_);
  }
  bool GuardsIntact() {
    EXPECT_TRUE(SynchronizeTestDevice());
    const unsigned char* const begin = data();
    for (const unsigned char* at = bytes_.data(); at < bytes_.data() + bytes_.size(); ++at) {
      if ((at < begin || at >= begin + num_bytes_) && *at != 0xa5) return false;
    }
    return true;
  }

 private:
  static constexpr std::int64_t kGuard = 64;
  const std::int64_t num_bytes_;
  TestVector<unsigned char> bytes_;
};

class WireTest : public OpTest {
 protected:
  WireMemory Encoded(const TestMatrix& x, DType wire, int num_threads = 2) {
    WireMemory memory(WireBytes(wire, x.rows(), x.cols()));
    QST_EXPECT_OK(EncodeRows(Context(num_threads), x, wire, memory.data()));
    EXPECT_TRUE(memory.GuardsIntact());
    return memory;
  }
  // What the plainest backend writes.
  std::string Expected(const TestMatrix& x, DType wire) {
    ThreadPool threads(1);
    WireMemory memory(WireBytes(wire, x.rows(), x.cols()));
    const OpContext plain{DeviceType::kCpu, &threads, CpuIsa::kPortable, nullptr};
    QST_EXPECT_OK(EncodeRows(plain, x, wire, memory.data()));
    return memory.Bits();
  }

  Random random_{57};
};

// The step of a code around the value: what rounding may take away is half of it.
double Step(DType wire, double value, double scale) {
  if (wire == DType::kI8) return scale;
  const int exponent = value == 0.0 ? -100 : std::ilogb(value / scale);
  return scale * std::ldexp(1.0, std::max(exponent, -6) - 3);
}

TEST_P(WireTest, ValuesComeBackWithinHalfAStepOfTheirCode) {
  for (const Size& size : Sizes()) {
    for (const DType wire : kScaled) {
      for (const DType dtype : kFloats) {
        const DMatrix values = Rounded(random_.NormalMatrix(size.rows, size.cols), dtype);
        const TestMatrix x(values, dtype, 3);
        WireMemory memory = Encoded(x, wire);
        TestMatrix y(size.rows, size.cols, DType::kF32, 2);
        QST_ASSERT_OK(DecodeRows(Context(), memory.data(), wire, y));
        EXPECT_TRUE(y.GuardsIntact());
        const DMatrix actual = y.ToDouble();
        for (std::int64_t i = 0; i < size.rows; ++i) {
          double absmax = 0.0;
          for (std::int64_t j = 0; j < size.cols; ++j) absmax = std::max(absmax, std::abs(values.at(i, j)));
          const double scale = size.cols == 0 ? 0.0 : static_cast<double>(memory.scale(i));
          EXPECT_NEAR(scale, absmax / (wire == DType::kI8 ? 127.0 : 448.0), 1e-7 * absmax);
          for (std::int64_t j = 0; j < size.cols; ++j) {
            const double value = values.at(i, j);
            ASSERT_LE(std::abs(actual.at(i, j) - value), 0.5001 * Step(wire, value, scale) + 1e-6 * absmax)
                << DTypeName(wire) << " (" << i << ", " << j << ") " << value;
          }
        }
      }
    }
  }
}

TEST_P(WireTest, EveryBackendWritesTheSameBytesForAnyNumberOfThreads) {
  for (const Size& size : Sizes()) {
    for (const DType wire : {DType::kBF16, DType::kF32, DType::kI8, DType::kF8E4M3}) {
      for (const DType dtype : kFloats) {
        const TestMatrix x(random_.NormalMatrix(size.rows, size.cols), dtype, 5);
        const std::string expected = Expected(x, wire);
        for (const int num_threads : {1, 2, 3}) EXPECT_EQ(Encoded(x, wire, num_threads).Bits(), expected);

        std::string decoded[2];
        for (std::string& bits : decoded) {
          WireMemory memory = Encoded(x, wire);
          TestMatrix y(size.rows, size.cols, DType::kBF16, 1);
          QST_ASSERT_OK(DecodeRows(Context(), memory.data(), wire, y));
          EXPECT_TRUE(y.GuardsIntact());
          bits = y.Bits();
        }
        EXPECT_EQ(decoded[0], decoded[1]);
      }
    }
  }
}

TEST_P(WireTest, FloatTypesTravelAsTheyAreOrRounded) {
  const DMatrix values = random_.NormalMatrix(5, 29);
  for (const DType wire : {DType::kF32, DType::kBF16}) {
    WireMemory memory = Encoded(TestMatrix(values, DType::kF32, 1), wire);
    TestMatrix y(5, 29);
    QST_ASSERT_OK(DecodeRows(Context(), memory.data(), wire, y));
    EXPECT_TRUE(IsClose(y, Rounded(values, wire), 0.0));
  }
}

TEST_P(WireTest, EveryCodeDecodesToItsValue) {
  for (const DType wire : kScaled) {
    WireMemory memory(WireBytes(wire, 1, 256));
    const float scale = 3.0f;
    std::memcpy(memory.data(), &scale, 4);
    DMatrix expected(1, 256);
    for (int code = 0; code < 256; ++code) {
      memory.data()[WireCodesOffset(1) + code] = static_cast<unsigned char>(code);
      const int exponent = (code >> 3) & 15;
      const int mantissa = code & 7;
      const double magnitude = exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
      const double f8 = (code & 0x7f) == 0x7f ? kNaN : (code < 128 ? magnitude : -magnitude);
      expected.at(0, code) = 3.0 * (wire == DType::kI8 ? (code < 128 ? code : code - 256) : f8);
    }
    TestMatrix y(1, 256);
    QST_ASSERT_OK(DecodeRows(Context(), memory.data(), wire, y));
    EXPECT_TRUE(IsClose(y, expected, 0.0)) << DTypeName(wire);
  }
}

TEST_P(WireTest, RowsOfZerosStayZero) {
  for (const DType wire : kScaled) {
    DMatrix values(3, 20);
    for (std::int64_t j = 0; j < 20; ++j) {
      values.at(1, j) = 1.0 + static_cast<double>(j);
      // So small that no scale is left.
      values.at(2, j) = 1e-45;
    }
    const TestMatrix x(values);
    WireMemory memory = Encoded(x, wire);
    EXPECT_EQ(memory.scale(0), 0.0f);
    EXPECT_EQ(memory.scale(2), 0.0f);
    TestMatrix y(3, 20);
    QST_ASSERT_OK(DecodeRows(Context(), memory.data(), wire, y));
    const DMatrix actual = y.ToDouble();
    for (std::int64_t j = 0; j < 20; ++j) {
      EXPECT_EQ(actual.at(0, j), 0.0);
      EXPECT_EQ(actual.at(2, j), 0.0);
    }
    EXPECT_EQ(actual.at(1, 19), 20.0);
    EXPECT_EQ(memory.Bits(), Expected(x, wire));
  }
}

TEST_P(WireTest, ExtremesOfFloat32KeepTheirRowsInRange) {
  for (const DType wire : kScaled) {
    DMatrix values(3, 9);
    for (std::int64_t j = 0; j < 9; ++j) {
      const double factor = static_cast<double>(j - 4) / 4.0;
      values.at(0, j) = static_cast<double>(static_cast<float>(3e38 * factor));
      values.at(1, j) = static_cast<double>(static_cast<float>(1.2e-38 * factor));
      // A scale with two bits: quotients beyond the largest code.
      values.at(2, j) = static_cast<double>(static_cast<float>(4.2e-43 * factor));
    }
    const TestMatrix x(values);
    WireMemory memory = Encoded(x, wire);
    EXPECT_EQ(memory.Bits(), Expected(x, wire));
    TestMatrix y(3, 9);
    QST_ASSERT_OK(DecodeRows(Context(), memory.data(), wire, y));
    for (std::int64_t i : {0, 1}) {
      EXPECT_NEAR(y.ToDouble().at(i, 8) / values.at(i, 8), 1.0, 1e-3);
      EXPECT_NEAR(y.ToDouble().at(i, 0) / values.at(i, 0), 1.0, 1e-3);
    }
    EXPECT_TRUE(std::isfinite(y.ToDouble().at(2, 8)));
  }
}

TEST_P(WireTest, RowWithANaNOrAnInfinityIsAllNaNAndTheOthersAreNot) {
  for (const DType wire : kScaled) {
    for (const double bad : {kNaN, kInf, -kInf}) {
      for (const std::int64_t column : {0, 9, 16}) {
        DMatrix values = random_.NormalMatrix(3, 17);
        const std::string good = Encoded(TestMatrix(values), wire).Bits();
        values.at(1, column) = bad;
        WireMemory memory = Encoded(TestMatrix(values), wire);
        EXPECT_TRUE(std::isnan(memory.scale(1)));
        const std::int64_t codes = WireCodesOffset(3);
        for (const std::int64_t row : {0, 2}) {
          EXPECT_EQ(memory.Bits().substr(codes + row * 17, 17), good.substr(codes + row * 17, 17));
        }
        TestMatrix y(3, 17);
        QST_ASSERT_OK(DecodeRows(Context(), memory.data(), wire, y));
        for (std::int64_t j = 0; j < 17; ++j) {
          EXPECT_TRUE(std::isnan(y.ToDouble().at(1, j)));
          EXPECT_TRUE(std::isfinite(y.ToDouble().at(2, j)));
        }
      }
    }
  }
}

TEST_P(WireTest, RowDoesNotDependOnTheOthers) {
  const DMatrix values = random_.NormalMatrix(9, 40);
  for (const DType wire : kScaled) {
    const std::string all = Encoded(TestMatrix(values), wire).Bits();
    for (std::int64_t i = 0; i < 9; ++i) {
      DMatrix row(1, 40);
      for (std::int64_t j = 0; j < 40; ++j) row.at(0, j) = values.at(i, j);
      const std::string alone = Encoded(TestMatrix(row), wire).Bits();
      EXPECT_EQ(alone.substr(WireCodesOffset(1)), all.substr(WireCodesOffset(9) + 40 * i, 40));
      EXPECT_EQ(alone.substr(0, 4), all.substr(4 * i, 4));
    }
  }
}

TEST_P(WireTest, WrongTypesAndAddressesAreRefused) {
  TestMatrix x(2, 4);
  WireMemory memory(64);
  EXPECT_THAT(EncodeRows(Context(), x, DType::kF16, memory.data()),
              StatusIs(absl::StatusCode::kUnimplemented, HasSubstr("do not travel as f16")));
  EXPECT_THAT(EncodeRows(Context(), x, DType::kI8, memory.data() + 4),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("not aligned to 16 bytes")));
  EXPECT_THAT(DecodeRows(Context(), memory.data() + 8, DType::kF8E4M3, x),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("not aligned")));
  EXPECT_THAT(DecodeRows(Context(), nullptr, DType::kI8, x), StatusIs(absl::StatusCode::kInvalidArgument));
  MatrixView integers = x;
  integers.dtype = DType::kI32;
  EXPECT_THAT(EncodeRows(Context(), integers, DType::kI8, memory.data()), StatusIs(absl::StatusCode::kUnimplemented));
  EXPECT_THAT(DecodeRows(Context(), memory.data(), DType::kI8, integers), StatusIs(absl::StatusCode::kUnimplemented));
}

QST_INSTANTIATE_OP_TEST(WireTest);

TEST(WireRowsTest, SizesCountTheScales) {
  static_assert(WireBytes(DType::kBF16, 3, 5) == 30);
  static_assert(WireBytes(DType::kF32, 3, 5) == 60);
  static_assert(WireBytes(DType::kI8, 3, 5) == 16 + 15);
  static_assert(WireBytes(DType::kF8E4M3, 5, 8) == 32 + 40);
  EXPECT_EQ(WireBytes(DType::kI8, 0, 5), 0);
}

}  // namespace
}  // namespace qst
