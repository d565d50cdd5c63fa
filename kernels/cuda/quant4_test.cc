#include "kernels/cuda/quant4.h"

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/quant/quant4.h"
#include "kernels/testing/op_test_context.h"
#include "kernels/testing/test_matrix.h"
#include "kernels/testing/test_memory.h"
#include "kernels/testing/test_quant4.h"
#include "proto/support/status_matchers.h"

namespace qst {
namespace {

using ::testing::HasSubstr;

constexpr DType kFloatTypes[] = {DType::kF32, DType::kBF16, DType::kF16};
constexpr Quant4Type kTypes[] = {Quant4Type::kNF4, Quant4Type::kFP4};

class CudaQuant4Test : public ::testing::Test {
 protected:
  void SetUp() override {
    stream_ = TestCuda::StreamOrNull();
    if (stream_ == nullptr) GTEST_SKIP() << "no GPU, or a build without the CUDA backend";
  }

  std::vector<float> Normal(std::int64_t n) {
    std::vector<float> values(n);
    for (float& value : values) value = static_cast<float>(0.02 * random_.Normal());
    return values;
  }
  Quant4Tensor Tensor(std::int64_t rows, std::int64_t cols, const Quant4Options& options) {
    return Quantize4Bit(Normal(rows * cols).data(), rows, cols, options).value();
  }

  cuda::Stream* stream_ = nullptr;
  Random random_{5};
};

// The rows as the host has them, rounded to dtype.
DMatrix Expected(const Quant4View& host, std::int64_t row_begin, std::int64_t rows, DType dtype) {
  std::vector<float> values(rows * host.cols);
  DequantizeRange(host, row_begin * host.cols, rows * host.cols, values.data());
  DMatrix expected(rows, host.cols);
  for (std::size_t i = 0; i < values.size(); ++i) expected.values[i] = values[i];
  return Rounded(expected, dtype);
}

struct Range {
  std::int64_t rows, cols, row_begin, row_end;
  int block_size;
};

// Whole words of codes and odd rows; blocks inside rows and across them; more than one thread block; single elements.
constexpr Range kRanges[] = {
    {1, 1, 0, 1, 64},      {3, 5, 1, 3, 64},     {4, 64, 0, 4, 64},      {9, 96, 2, 7, 64},
    {7, 63, 0, 7, 64},     {5, 1000, 1, 5, 128}, {33, 72, 32, 33, 64},   {2, 8192, 1, 2, 4096},
    {65, 520, 3, 65, 256}, {6, 12, 3, 3, 64},    {257, 129, 0, 257, 64}, {40, 2048, 0, 40, 64},
};

TEST_F(CudaQuant4Test, DequantizedRowsHaveTheHostsBits) {
  for (const Range& range : kRanges) {
    for (const Quant4Type type : kTypes) {
      for (const bool double_quant : {false, true}) {
        Quant4Options options;
        options.type = type;
        options.block_size = range.block_size;
        options.double_quant = double_quant;
        const Quant4Tensor host = Tensor(range.rows, range.cols, options);
        for (const DType dtype : kFloatTypes) {
          for (const int misalign : {0, 1}) {
            SCOPED_TRACE(testing::Message() << range.rows << " x " << range.cols << ", from row " << range.row_begin
                                            << ", blocks of " << range.block_size << ", " << DTypeName(dtype)
                                            << ", double_quant " << double_quant << ", misaligned by " << misalign);
            const TestQuant4 w(host, misalign);
            const std::int64_t rows = range.row_end - range.row_begin;
            TestMatrix out(rows, range.cols, dtype, /*padding=*/3 * misalign);
            QST_ASSERT_OK(cuda::Dequantize(*stream_, w.view(), range.row_begin, out));
            const TestMatrix expected(Expected(host.view(), range.row_begin, rows, dtype), dtype);
            EXPECT_EQ(out.Bits(), expected.Bits());
            EXPECT_TRUE(out.GuardsIntact());
          }
        }
      }
    }
  }
}

// The fast kernel writes from aligned addresses only, which a TestMatrix does not promise.
TEST_F(CudaQuant4Test, AlignedOutputsHaveTheHostsBits) {
  for (const DType dtype : kFloatTypes) {
    const Quant4Tensor host = Tensor(24, 1024, Quant4Options());
    const TestQuant4 w(host);
    const std::int64_t num_bytes = 20 * 1024 * DTypeBytes(dtype);
    constexpr std::int64_t kGuard = 64;
    TestVector<unsigned char> bytes(num_bytes + 3 * kGuard, 0xa5);
    const std::int64_t begin = kGuard + (kGuard - reinterpret_cast<std::uintptr_t>(bytes.data()) % kGuard);
    QST_ASSERT_OK(cuda::Dequantize(*stream_, w.view(), 3, MatrixView{bytes.data() + begin, dtype, 20, 1024, 1024}));
    const std::string expected = TestMatrix(Expected(host.view(), 3, 20, dtype), dtype).Bits();
    const TestVector<unsigned char>& actual = Synced(bytes);
    EXPECT_EQ(std::string(actual.begin() + begin, actual.begin() + begin + num_bytes), expected);
    for (std::int64_t i = 0; i < static_cast<std::int64_t>(bytes.size()); ++i) {
      const bool is_guard = i < begin || i >= begin + num_bytes;
      ASSERT_TRUE(!is_guard || actual[i] == 0xa5) << i;
    }
  }
}

TEST_F(CudaQuant4Test, DequantizeRefusesWhatDoesNotFit) {
  const Quant4Tensor host = Tensor(4, 64, Quant4Options());
  const TestQuant4 w(host);
  TestMatrix out(2, 64);
  EXPECT_THAT(cuda::Dequantize(*stream_, w.view(), 3, out),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("[2, 64] from row 3 of a weight [4, 64]")));
  EXPECT_THAT(cuda::Dequantize(*stream_, w.view(), -1, out), StatusIs(absl::StatusCode::kInvalidArgument));
  TestMatrix narrow(2, 63);
  EXPECT_THAT(cuda::Dequantize(*stream_, w.view(), 0, narrow), StatusIs(absl::StatusCode::kInvalidArgument));
  Quant4View view = w.view();
  view.nested_absmax = nullptr;
  EXPECT_THAT(cuda::Dequantize(*stream_, view, 0, out), StatusIs(absl::StatusCode::kInvalidArgument));
  view = w.view();
  view.block_size = 96;
  EXPECT_THAT(cuda::Dequantize(*stream_, view, 0, out), StatusIs(absl::StatusCode::kUnimplemented, HasSubstr("96")));
}

TEST_F(CudaQuant4Test, QuantizedWeightsHaveTheHostsBits) {
  for (const std::int64_t num_elems : {1, 2, 63, 64, 65, 1001, 4096, 10007}) {
    for (const int block_size : {64, 128, 4096}) {
      for (const Quant4Type type : kTypes) {
        for (const DType dtype : kFloatTypes) {
          SCOPED_TRACE(testing::Message()
                       << num_elems << " elements, blocks of " << block_size << ", " << DTypeName(dtype));
          // Several scales, zeros, denormal numbers, and values on both sides of every threshold.
          DMatrix values = random_.NormalMatrix(1, num_elems);
          for (std::int64_t i = 0; i < num_elems; ++i) {
            if (i / 64 % 4 == 1) values.values[i] = 0.0;
            if (i / 64 % 4 == 2) values.values[i] *= 1e-39;
            if (i / 64 % 4 == 3) values.values[i] = static_cast<double>(i % 64 - 32) / 32.0;
          }
          values = Rounded(values, dtype);
          const std::vector<float> floats(values.values.begin(), values.values.end());
          Quant4Options options;
          options.type = type;
          options.block_size = block_size;
          options.double_quant = false;
          const Quant4Tensor expected = Quantize4Bit(floats.data(), 1, num_elems, options).value();
          constexpr std::size_t kGuard = 8;
          TestVector<std::uint8_t> packed(expected.packed.size() + kGuard, 0x5a);
          TestVector<float> absmax(expected.absmax.size() + kGuard, -7.0f);
          QST_ASSERT_OK(
              cuda::Quantize4Bit(*stream_, TestMatrix(values, dtype), type, block_size, packed.data(), absmax.data()));
          ASSERT_TRUE(SynchronizeTestDevice());
          EXPECT_EQ(std::vector<std::uint8_t>(packed.begin(), packed.end() - kGuard), expected.packed);
          EXPECT_EQ(std::vector<float>(absmax.begin(), absmax.end() - kGuard), expected.absmax);
          for (std::size_t i = 0; i < kGuard; ++i) {
            EXPECT_EQ(packed[expected.packed.size() + i], 0x5a);
            EXPECT_EQ(absmax[expected.absmax.size() + i], -7.0f);
          }
        }
      }
    }
  }
}

TEST_F(CudaQuant4Test, ABlockThatIsNotFiniteGetsNoConstant) {
  for (const double bad : {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity(),
                           -std::numeric_limits<double>::infinity()}) {
    DMatrix values = random_.NormalMatrix(4, 64);
    values.at(2, 17) = bad;
    TestVector<std::uint8_t> packed(128);
    TestVector<float> absmax(4);
    QST_ASSERT_OK(cuda::Quantize4Bit(*stream_, TestMatrix(values), Quant4Type::kNF4, 64, packed.data(), absmax.data()));
    Synced(absmax);
    for (int b = 0; b < 4; ++b) EXPECT_EQ(std::isnan(absmax[b]), b == 2) << b;
    Quant4Tensor tensor;
    tensor.absmax.assign(absmax.begin(), absmax.end());
    EXPECT_THAT(DoubleQuantize(&tensor), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("block 2")));
  }
}

TEST_F(CudaQuant4Test, QuantizeRefusesGapsAndTheBlockSizesThatTheHostRefuses) {
  TestVector<std::uint8_t> packed(64);
  TestVector<float> absmax(2);
  for (const int block_size : {0, 32, 96, 8192}) {
    EXPECT_THAT(cuda::Quantize4Bit(*stream_, TestMatrix(random_.NormalMatrix(2, 64)), Quant4Type::kNF4, block_size,
                                   packed.data(), absmax.data()),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("block_size")));
  }
  EXPECT_THAT(cuda::Quantize4Bit(*stream_, TestMatrix(random_.NormalMatrix(2, 60), DType::kF32, 4), Quant4Type::kNF4,
                                 64, packed.data(), absmax.data()),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("rows of 60 weights lie 64 apart")));
  QST_EXPECT_OK(cuda::Quantize4Bit(*stream_, ConstMatrixView(nullptr, DType::kF32, 0, 5, 5), Quant4Type::kNF4, 64,
                                   nullptr, nullptr));
}

}  // namespace
}  // namespace qst
