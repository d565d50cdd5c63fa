#include "worker/backbone/device_weights.h"

#include <cstring>
#include <numeric>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/quant/codes.h"
#include "kernels/quant/quant4.h"
#include "proto/support/status_matchers.h"
#include "worker/testing/test_device.h"

namespace qst {
namespace {

class DeviceWeightsTest : public DeviceTest {
 protected:
  bool is_cuda() const { return ctx_.device == DeviceType::kCuda; }

  // That `device` holds the host's bytes: in place on CPU, elsewhere on CUDA.
  void ExpectCopy(const void* device, const void* host, std::int64_t num_bytes) {
    EXPECT_EQ(device == host, !is_cuda());
    if (is_cuda()) {
      EXPECT_EQ(reinterpret_cast<std::uintptr_t>(device) % 256, 0u);
    }
    std::vector<char> bytes(static_cast<std::size_t>(num_bytes));
    QST_ASSERT_OK(Download(ctx_, device, num_bytes, bytes.data()));
    EXPECT_EQ(0, std::memcmp(bytes.data(), host, bytes.size()));
  }
};
QST_INSTANTIATE_DEVICE_TEST(DeviceWeightsTest);

TEST_P(DeviceWeightsTest, DenseWeightsAndVectorsAreWhatTheyWereOnTheHost) {
  std::vector<float> table(5 * 3);
  std::iota(table.begin(), table.end(), 0.5f);
  const std::vector<std::uint16_t> half(7, 0x3c01);
  ConstMatrixView matrix = Matrix(const_cast<const float*>(table.data()), 5, 3);
  WeightView weight = WeightView::Dense(ConstMatrixView(half.data(), DType::kF16, 7, 1, 1));
  ConstMatrixView vector, none;
  DeviceWeights weights;
  weights.Add(&matrix);
  weights.Add(&weight);
  weights.Add({1.5f, 2.5f}, &vector);
  weights.Add(std::vector<float>(), &none);
  EXPECT_EQ(weights.num_bytes(), 60 + 14 + 8);
  EXPECT_EQ(weights.device_bytes(), 3 * 256);
  QST_ASSERT_OK(weights.Upload(ctx_));
  ExpectCopy(matrix.data, table.data(), 60);
  EXPECT_EQ(matrix.rows, 5);
  EXPECT_EQ(matrix.cols, 3);
  ExpectCopy(weight.dense.data, half.data(), 14);
  EXPECT_EQ(weight.dense.dtype, DType::kF16);
  EXPECT_TRUE(none.empty());
  ASSERT_EQ(vector.cols, 2);
  std::vector<float> values(2);
  QST_ASSERT_OK(Download(ctx_, vector.data, 8, values.data()));
  EXPECT_EQ(values, (std::vector<float>{1.5f, 2.5f}));
}

TEST_P(DeviceWeightsTest, QuantizedWeightsBringAllTheirArrays) {
  for (const bool is_double : {false, true}) {
    Quant4View view;
    view.rows = 3;
    view.cols = 43;  // an odd number of elements, 3 blocks
    std::vector<std::uint8_t> packed(65), codes(3);
    std::iota(packed.begin(), packed.end(), std::uint8_t{7});
    std::iota(codes.begin(), codes.end(), std::uint8_t{100});
    const std::vector<float> absmax = {0.25f, 0.5f, 0.75f};
    const std::vector<float> nested = {0.125f};
    view.packed = packed.data();
    if (is_double) {
      view.absmax_codes = codes.data();
      view.nested_absmax = nested.data();
      view.nested_map = DynamicMap8();
    } else {
      view.absmax = absmax.data();
    }
    WeightView first = WeightView::Quantized(view);
    WeightView same = first;
    DeviceWeights weights;
    weights.Add(&first);
    const std::int64_t once = weights.num_bytes();
    EXPECT_EQ(once, is_double ? 65 + 3 + 4 + 1024 : 65 + 12);
    weights.Add(&same);
    EXPECT_EQ(weights.num_bytes(), once) << "bytes that two views share count once";
    QST_ASSERT_OK(weights.Upload(ctx_));
    ExpectCopy(first.quant4.packed, packed.data(), 65);
    EXPECT_EQ(first.quant4.packed, same.quant4.packed);
    if (is_double) {
      ExpectCopy(first.quant4.absmax_codes, codes.data(), 3);
      ExpectCopy(first.quant4.nested_absmax, nested.data(), 4);
      ExpectCopy(first.quant4.nested_map, DynamicMap8(), 1024);
      EXPECT_EQ(first.quant4.absmax, nullptr);
      EXPECT_EQ(first.quant4.nested_map, same.quant4.nested_map);
    } else {
      ExpectCopy(first.quant4.absmax, absmax.data(), 12);
      EXPECT_EQ(first.quant4.absmax_codes, nullptr);
    }
  }
}

}  // namespace
}  // namespace qst
