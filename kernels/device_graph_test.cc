#include "kernels/device_graph.h"

#include <cstdint>
#include <functional>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/device_memory.h"
#include "kernels/ops.h"
#include "kernels/quant/quant4.h"
#include "kernels/testing/op_test_context.h"
#include "kernels/testing/test_memory.h"
#include "kernels/testing/test_quant4.h"
#include "proto/support/status_macros.h"
#include "proto/support/status_matchers.h"

namespace qst {
namespace {

using testing::HasSubstr;

TEST(DeviceGraphCpuTest, ThereAreNone) {
  ThreadPool threads(1);
  OpContext ctx;
  ctx.threads = &threads;
  bool is_called = false;
  EXPECT_THAT(DeviceGraph::Capture(ctx,
                                   [&] {
                                     is_called = true;
                                     return absl::OkStatus();
                                   })
                  .status(),
              StatusIs(absl::StatusCode::kUnimplemented));
  EXPECT_FALSE(is_called);
  EXPECT_EQ(DeviceMemoryGeneration(ctx), 0);
}

class DeviceGraphGpuTest : public testing::Test {
 protected:
  void SetUp() override {
    if (TestCuda::StreamOrNull() == nullptr) GTEST_SKIP() << "no GPU, or a build without the CUDA backend";
    ctx_.device = DeviceType::kCuda;
    ctx_.stream = TestCuda::StreamOrNull();
  }
  // y += x
  absl::Status Add() { return AddInto(ctx_, Matrix(x_.data(), 2, 3), Matrix(y_.data(), 2, 3), /*accumulate=*/true); }

  OpContext ctx_;
  TestVector<float> x_ = TestVector<float>(6, 1.0f);
  TestVector<float> y_ = TestVector<float>(6, 5.0f);
};

TEST_F(DeviceGraphGpuTest, WorkTakesPlaceWhenItIsLaunchedEachTimeWithTheValuesOfThatTime) {
  auto graph = DeviceGraph::Capture(ctx_, [&] {
    QST_RETURN_IF_ERROR(Add());
    return Add();
  });
  QST_ASSERT_OK(graph);
  EXPECT_EQ(Synced(y_)[5], 5.0f);
  QST_ASSERT_OK(graph->Launch(ctx_));
  QST_ASSERT_OK(Add());
  QST_ASSERT_OK(graph->Launch(ctx_));
  EXPECT_EQ(Synced(y_)[5], 10.0f);
  x_[5] = 3.0f;
  QST_ASSERT_OK(graph->Launch(ctx_));
  EXPECT_EQ(Synced(y_)[5], 16.0f);
}

TEST_F(DeviceGraphGpuTest, AGraphMayGoWhileItRuns) {
  for (int i = 0; i < 3; ++i) {
    auto graph = DeviceGraph::Capture(ctx_, [&] { return Add(); });
    QST_ASSERT_OK(graph);
    QST_ASSERT_OK(graph->Launch(ctx_));
  }
  EXPECT_EQ(Synced(y_)[0], 8.0f);
}

TEST_F(DeviceGraphGpuTest, WhateverWaitsIsRefusedAndTheStreamGoesOn) {
  float value = 0.0f;
  const auto memory = DeviceMemory::CopyOf(ctx_, &value, sizeof(value));
  QST_ASSERT_OK(memory);
  const std::vector<std::function<absl::Status()>> forbidden = {
      [&] { return Synchronize(ctx_); },
      [&] { return Download(ctx_, memory->data(), sizeof(value), &value); },
      [&] { return Upload(ctx_, &value, sizeof(value), const_cast<void*>(memory->data())); },
  };
  for (const auto& work : forbidden) {
    EXPECT_THAT(DeviceGraph::Capture(ctx_,
                                     [&] {
                                       QST_RETURN_IF_ERROR(Add());
                                       return work();
                                     })
                    .status(),
                StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("while a graph is captured")));
    QST_EXPECT_OK(work());
  }
  EXPECT_EQ(Synced(y_)[0], 5.0f);
  QST_ASSERT_OK(Add());
  EXPECT_EQ(Synced(y_)[0], 6.0f);
}

TEST_F(DeviceGraphGpuTest, ErrorsOfTheWorkComeBack) {
  EXPECT_THAT(DeviceGraph::Capture(ctx_,
                                   [&] {
                                     QST_RETURN_IF_ERROR(Add());
                                     return absl::DataLossError("mine");
                                   })
                  .status(),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("mine")));
  QST_ASSERT_OK(Add());
  EXPECT_EQ(Synced(y_)[0], 6.0f);
}

TEST_F(DeviceGraphGpuTest, ScratchMemoryDoesNotGrowInACaptureAndCountsWhenItDoes) {
  // More than any other test of this process asks for.
  const std::int64_t n = std::int64_t{1} << 22;
  auto values = DeviceMemory::Allocate(ctx_, n * 4);
  auto sum = DeviceMemory::Allocate(ctx_, 8);
  QST_ASSERT_OK(values);
  QST_ASSERT_OK(sum);
  QST_ASSERT_OK(FillZero(ctx_, values->data(), n * 4));
  const auto work = [&] { return SumOfSquares(ctx_, values->as<float>(), n, sum->as<double>()); };
  const std::int64_t before = DeviceMemoryGeneration(ctx_);
  EXPECT_THAT(DeviceGraph::Capture(ctx_, work).status(),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("more scratch memory")));
  EXPECT_EQ(DeviceMemoryGeneration(ctx_), before);
  QST_ASSERT_OK(work());
  EXPECT_NE(DeviceMemoryGeneration(ctx_), before);
  QST_EXPECT_OK(DeviceGraph::Capture(ctx_, work).status());
}

// Weights that cuBLASLt cannot take where they lie go through the panels that 4-bit weights are unpacked to.
TEST_F(DeviceGraphGpuTest, ProductsByCopiedWeightsKeepTheirBitsBetweenThoseBy4BitWeights) {
  constexpr std::int64_t kTokens = 40, kOut = 16, kIn = 18;
  std::vector<float> floats(kOut * kIn);
  for (std::size_t i = 0; i < floats.size(); ++i) floats[i] = static_cast<float>(i % 13) * 0.125f - 0.75f;
  const TestVector<float> weight = Reachable(floats);
  TestVector<float> x(kTokens * kIn);
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i % 7) * 0.25f - 0.5f;
  const TestQuant4 quant(Quantize4Bit(floats.data(), kOut, kIn, Quant4Options()).value());
  TestVector<float> out(kTokens * kOut);
  TestVector<float> by_quant(kTokens * kOut);
  const auto dense = [&] {
    return Linear(ctx_, Matrix(x.data(), kTokens, kIn), WeightView::Dense(Matrix(weight.data(), kOut, kIn)), {},
                  Matrix(out.data(), kTokens, kOut), /*accumulate=*/false);
  };
  const auto quantized = [&] {
    return Linear(ctx_, Matrix(x.data(), kTokens, kIn), WeightView::Quantized(quant.view()), {},
                  Matrix(by_quant.data(), kTokens, kOut), /*accumulate=*/false);
  };
  QST_ASSERT_OK(dense());
  QST_ASSERT_OK(quantized());
  const TestVector<float> expected = Synced(out);
  const TestVector<float> expected_by_quant = by_quant;
  EXPECT_THAT(DeviceGraph::Capture(ctx_, quantized).status(),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("unpacking a 4-bit weight")));
  const auto graph = DeviceGraph::Capture(ctx_, dense);
  QST_ASSERT_OK(graph);
  for (int i = 0; i < 3; ++i) {
    out.assign(out.size(), 0.0f);
    by_quant.assign(by_quant.size(), 0.0f);
    // Both buffers of panels come into use, before and behind the graph.
    for (int j = 0; j < 3; ++j) QST_ASSERT_OK(quantized());
    QST_ASSERT_OK(graph->Launch(ctx_));
    for (int j = 0; j < 3; ++j) QST_ASSERT_OK(quantized());
    EXPECT_EQ(Synced(out), expected);
    EXPECT_EQ(by_quant, expected_by_quant);
  }
}

}  // namespace
}  // namespace qst
