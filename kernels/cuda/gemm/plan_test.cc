#include "kernels/cuda/gemm/plan.h"

#include <algorithm>
#include <cstdint>

#include "gtest/gtest.h"

namespace qst {
namespace cuda {
namespace {

constexpr std::int64_t kMiB = std::int64_t{1} << 20;

TEST(LinearPlanTest, TypesOfProductsFollowTheWidestAndF16) {
  EXPECT_EQ(LinearComputeType(DType::kBF16, true, DType::kF32), DType::kBF16);
  EXPECT_EQ(LinearComputeType(DType::kF32, true, DType::kF32), DType::kBF16);
  EXPECT_EQ(LinearComputeType(DType::kF16, true, DType::kF32), DType::kF16);
  EXPECT_EQ(LinearComputeType(DType::kBF16, false, DType::kF32), DType::kF32);
  EXPECT_EQ(LinearComputeType(DType::kF32, false, DType::kBF16), DType::kBF16);
  EXPECT_EQ(LinearComputeType(DType::kBF16, false, DType::kF16), DType::kF16);
  EXPECT_EQ(LinearBackwardComputeType(false, DType::kF16), DType::kBF16);
  EXPECT_EQ(LinearBackwardComputeType(true, DType::kF32), DType::kBF16);
  EXPECT_EQ(LinearBackwardComputeType(false, DType::kF32), DType::kF32);
}

TEST(LinearPlanTest, PanelsOfLlamaShapesAreAboutEqualAndWithin64MiBOr2048Rows) {
  const auto rows = [](std::int64_t n, std::int64_t k) { return PanelRows(n, k, DType::kBF16); };
  // 7B: attention, gate and up, down.
  EXPECT_EQ(rows(4096, 4096), 4096);
  EXPECT_EQ(rows(11008, 4096), 5632);
  EXPECT_EQ(rows(4096, 11008), 2048);
  // 70B: queries, keys, gate and up, down.
  EXPECT_EQ(rows(8192, 8192), 4096);
  EXPECT_EQ(rows(1024, 8192), 1024);
  EXPECT_EQ(rows(28672, 8192), 4096);
  EXPECT_EQ(rows(8192, 28672), 2048);
}

TEST(LinearPlanTest, EveryPanelButTheLastIsAMultipleOfATile) {
  for (const std::int64_t n : {1, 2049, 5000, 32001, 128256}) {
    for (const std::int64_t k : {1, 63, 4096, 16384, 100000}) {
      for (const DType dtype : {DType::kBF16, DType::kF32}) {
        const std::int64_t rows = PanelRows(n, k, dtype);
        ASSERT_GT(rows, 0);
        ASSERT_LE(rows, n);
        EXPECT_TRUE(rows == n || rows % 256 == 0) << n << ", " << k;
        EXPECT_LE(PanelBytes(n, k, dtype), std::max(64 * kMiB, CopyBytes(2048, k, dtype)));
        EXPECT_GE(PanelBytes(n, k, dtype), rows * k * DTypeBytes(dtype));
      }
    }
  }
}

TEST(LinearPlanTest, RowsAtATimeStayWithinTheLimit) {
  EXPECT_EQ(RowsAtATime(100000, 0), 100000);
  EXPECT_EQ(RowsAtATime(1000, 8192), 1000);
  EXPECT_EQ(RowsAtATime(100000, 8192), 32768);
  EXPECT_EQ(RowsAtATime(100000, 123456), 2048);
  EXPECT_EQ(RowsAtATime(100000, 10 * kMiB), 256);
  EXPECT_EQ(RowsAtATime(100, 10 * kMiB), 100);
  EXPECT_EQ(RowsAtATime(0, 4), 0);
}

TEST(LinearPlanTest, GradChunksStayWithin64MiBOrAreOne) {
  EXPECT_EQ(GradChunksAtATime(16, 4096), 8);
  EXPECT_EQ(GradChunksAtATime(256, 256), 128);
  EXPECT_EQ(GradChunksAtATime(4096, 256), 8);
  EXPECT_EQ(GradChunksAtATime(32000, 4096), 1);
}

TEST(LinearPlanTest, BackboneLayersNeedPanelsButNoScratch) {
  LinearShape layer;
  layer.tokens = 4096;
  layer.n = 11008;
  layer.k = 4096;
  EXPECT_EQ(LinearScratchBytes(layer), 0);
  EXPECT_EQ(LinearPanelBytes(layer), 2 * 5632 * 4096 * 2);
  // x that is float32 is rounded; y of another half type than the factors' is finished from float32.
  layer.x = DType::kF32;
  EXPECT_EQ(LinearScratchBytes(layer), 4096 * 4096 * 2);
  layer.y = DType::kF16;
  EXPECT_EQ(LinearScratchBytes(layer), 4096 * (4096 * 2 + 5632 * 4));
  layer.tokens = kMaxFewTokens;
  EXPECT_EQ(LinearScratchBytes(layer), 0);
}

TEST(LinearPlanTest, DownsamplingNeedsPartialGradientsAlone) {
  LinearShape down;
  down.tokens = 2000;
  down.n = 16;
  down.k = 4096;
  down.x = DType::kBF16;
  down.y = DType::kF32;
  down.w_is_quantized = false;
  down.needs_grad_w = true;
  EXPECT_EQ(LinearPanelBytes(down), 0);
  EXPECT_EQ(LinearScratchBytes(down), 4 * 16 * 4096 * 4);
  down.tokens = 512;  // one chunk, straight into the gradient
  EXPECT_EQ(LinearScratchBytes(down), 0);
  down.has_bias = true;
  EXPECT_EQ(LinearScratchBytes(down), 256);
  // 4 MiB a chunk: 16 of 20 at a time.
  EXPECT_EQ(SkinnyGradChunksAtATime(64, 16384), 16);
  down.has_bias = false;
  down.tokens = 20 * kGradChunkRows;
  down.n = 64;
  down.k = 16384;
  EXPECT_EQ(LinearScratchBytes(down), 64 * kMiB);
}

TEST(LinearPlanTest, OtherSideLayersNeedCopiesAndPartialGradients) {
  LinearShape side;
  side.tokens = 2000;
  side.n = 65;
  side.k = 4096;
  side.x = DType::kBF16;
  side.y = DType::kF32;
  side.w_is_quantized = false;
  side.needs_grad_w = true;
  EXPECT_EQ(LinearPanelBytes(side), 0);
  EXPECT_EQ(LinearScratchBytes(side), 2000 * 4096 * 4 + 4 * 65 * 4096 * 4);
  side.tokens = 512;  // one chunk, straight into the gradient
  EXPECT_EQ(LinearScratchBytes(side), 512 * 4096 * 4);
  side.n = 16;
  EXPECT_EQ(LinearScratchBytes(side), 0);
  side.y = DType::kBF16;  // not a side network's, so it goes the way of others
  EXPECT_EQ(LinearScratchBytes(side), 512 * (4096 + 16) * 4);
  side.y = DType::kF32;
  side.x = DType::kF32;
  EXPECT_EQ(LinearScratchBytes(side), 0);
  side.has_bias = true;
  EXPECT_EQ(LinearScratchBytes(side), 256);

  LinearShape head;  // bf16, frozen: gradients of logits are rounded
  head.tokens = 1000;
  head.n = 32000;
  head.k = 4096;
  head.x = DType::kF32;
  head.y = DType::kF32;
  head.w_is_quantized = false;
  head.w = DType::kBF16;
  EXPECT_EQ(LinearScratchBytes(head), 1000 * 4096 * 2);
  head.needs_grad_x = true;
  EXPECT_EQ(LinearScratchBytes(head), 1000 * 32000 * 2);
  EXPECT_EQ(LinearPanelBytes(head), 0);
  head.w = DType::kF16;  // its gradients are made with bf16 panels
  EXPECT_EQ(LinearPanelBytes(head), 2 * 8192 * 4096 * 2);
}

}  // namespace
}  // namespace cuda
}  // namespace qst
