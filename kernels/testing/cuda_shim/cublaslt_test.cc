// Products of the cuBLASLt stand-in against sums in double.
#include <cublasLt.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/testing/cuda_shim/cublaslt_test_util.h"

namespace qst::cuda_shim {
namespace {

double Epsilon(cudaDataType_t type) { return type == CUDA_R_32F ? 0x1p-24 : type == CUDA_R_16F ? 0x1p-11 : 0x1p-8; }

struct Case {
  cudaDataType_t in;
  cudaDataType_t out;
  cublasOperation_t trans_a;
  cublasOperation_t trans_b;
  cublasLtEpilogue_t epilogue;
  std::int32_t order;
};

class CudaShimCublasLtTest : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override { ASSERT_EQ(cublasLtCreate(&handle_), CUBLAS_STATUS_SUCCESS); }
  void TearDown() override { EXPECT_EQ(cublasLtDestroy(handle_), CUBLAS_STATUS_SUCCESS); }

  template <class T>
  static void Set(cublasLtMatmulDesc_t desc, cublasLtMatmulDescAttributes_t attribute, T value) {
    ASSERT_EQ(cublasLtMatmulDescSetAttribute(desc, attribute, &value, sizeof(value)), CUBLAS_STATUS_SUCCESS);
  }

  cublasLtHandle_t handle_ = nullptr;
};

std::vector<Case> AllCases() {
  const std::pair<cudaDataType_t, cudaDataType_t> types[] = {{CUDA_R_32F, CUDA_R_32F},
                                                             {CUDA_R_16F, CUDA_R_16F},
                                                             {CUDA_R_16F, CUDA_R_32F},
                                                             {CUDA_R_16BF, CUDA_R_16BF},
                                                             {CUDA_R_16BF, CUDA_R_32F}};
  std::vector<Case> cases;
  for (const auto& [in, out] : types) {
    for (const cublasOperation_t trans_a : {CUBLAS_OP_N, CUBLAS_OP_T}) {
      for (const cublasOperation_t trans_b : {CUBLAS_OP_N, CUBLAS_OP_T}) {
        for (const cublasLtEpilogue_t epilogue :
             {CUBLASLT_EPILOGUE_DEFAULT, CUBLASLT_EPILOGUE_BIAS, CUBLASLT_EPILOGUE_RELU, CUBLASLT_EPILOGUE_RELU_BIAS}) {
          for (const std::int32_t order : {CUBLASLT_ORDER_COL, CUBLASLT_ORDER_ROW}) {
            cases.push_back({in, out, trans_a, trans_b, epilogue, order});
          }
        }
      }
    }
  }
  return cases;
}

INSTANTIATE_TEST_SUITE_P(All, CudaShimCublasLtTest, ::testing::ValuesIn(AllCases()));

TEST_P(CudaShimCublasLtTest, ProductsMatchSumsInDouble) {
  const Case& p = GetParam();
  const struct {
    std::int64_t m, n, k;
    float alpha, beta;
    int batches;
  } shapes[] = {
      {1, 1, 1, 1.0f, 0.0f, 1}, {8, 4, 16, 1.0f, 1.0f, 2}, {13, 9, 33, -0.5f, 0.25f, 3}, {40, 1, 7, 2.0f, 0.0f, 1}};
  for (const auto& shape : shapes) {
    const bool is_ta = p.trans_a == CUBLAS_OP_T;
    const bool is_tb = p.trans_b == CUBLAS_OP_T;
    const Matrix a(p.in, is_ta ? shape.k : shape.m, is_ta ? shape.m : shape.k, shape.batches, p.order, 1);
    const Matrix b(p.in, is_tb ? shape.n : shape.k, is_tb ? shape.k : shape.n, shape.batches, p.order, 2);
    const Matrix d(p.out, shape.m, shape.n, shape.batches, p.order, 3);
    const Matrix bias(p.out, shape.m, 1, 1, CUBLASLT_ORDER_COL, 4);
    cublasLtMatmulDesc_t desc = nullptr;
    ASSERT_EQ(cublasLtMatmulDescCreate(&desc, CUBLAS_COMPUTE_32F, CUDA_R_32F), CUBLAS_STATUS_SUCCESS);
    Set(desc, CUBLASLT_MATMUL_DESC_TRANSA, p.trans_a);
    Set(desc, CUBLASLT_MATMUL_DESC_TRANSB, p.trans_b);
    Set(desc, CUBLASLT_MATMUL_DESC_EPILOGUE, p.epilogue);
    Set(desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, static_cast<const void*>(bias.data()));
    // In place: C is D.
    ASSERT_EQ(cublasLtMatmul(handle_, desc, &shape.alpha, a.data(), a.layout(), b.data(), b.layout(), &shape.beta,
                             d.data(), d.layout(), d.data(), d.layout(), nullptr, nullptr, 0, nullptr),
              CUBLAS_STATUS_SUCCESS);
    EXPECT_EQ(cublasLtMatmulDescDestroy(desc), CUBLAS_STATUS_SUCCESS);
    const std::vector<unsigned char> result = d.Read();
    EXPECT_TRUE(d.GapsIntact(result, shape.batches));
    for (int batch = 0; batch < shape.batches; ++batch) {
      for (std::int64_t i = 0; i < shape.m; ++i) {
        for (std::int64_t j = 0; j < shape.n; ++j) {
          double sum = 0.0;
          double magnitude = 0.0;
          for (std::int64_t k = 0; k < shape.k; ++k) {
            const double product = static_cast<double>(is_ta ? a.Initial(batch, k, i) : a.Initial(batch, i, k)) *
                                   (is_tb ? b.Initial(batch, j, k) : b.Initial(batch, k, j));
            sum += product;
            magnitude += std::fabs(product);
          }
          double expected = shape.alpha * sum + shape.beta * static_cast<double>(d.Initial(batch, i, j));
          magnitude = std::fabs(shape.alpha) * magnitude + std::fabs(shape.beta * d.Initial(batch, i, j));
          if ((p.epilogue & CUBLASLT_EPILOGUE_BIAS) != 0) {
            expected += bias.Initial(0, i, 0);
            magnitude += std::fabs(bias.Initial(0, i, 0));
          }
          if ((p.epilogue & CUBLASLT_EPILOGUE_RELU) != 0) expected = std::max(expected, 0.0);
          const double tolerance =
              static_cast<double>(shape.k + 4) * 0x1p-24 * magnitude + Epsilon(p.out) * std::fabs(expected);
          EXPECT_NEAR(d.At(result, batch, i, j), expected, tolerance)
              << shape.m << "x" << shape.n << "x" << shape.k << " batch " << batch << " (" << i << ", " << j << ")";
        }
      }
    }
  }
}

}  // namespace
}  // namespace qst::cuda_shim
