// Algorithms of the cuBLASLt stand-in: what is offered, what it needs, what it refuses.
#include <cublasLt.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cuda_shim/cublaslt_hooks.h"
#include "gtest/gtest.h"
#include "kernels/testing/cuda_shim/cublaslt_test_util.h"
#include "kernels/testing/cuda_shim/shim_test_util.h"

namespace qst::cuda_shim {
namespace {

// Float, column order, [m, k] x [k, n].
class Product {
 public:
  Product(std::int64_t m, std::int64_t n, std::int64_t k)
      : a(CUDA_R_32F, m, k, 1, CUBLASLT_ORDER_COL, 1),
        b(CUDA_R_32F, k, n, 1, CUBLASLT_ORDER_COL, 2),
        d(CUDA_R_32F, m, n, 1, CUBLASLT_ORDER_COL, 3) {
    EXPECT_EQ(cublasLtCreate(&handle), CUBLAS_STATUS_SUCCESS);
    EXPECT_EQ(cublasLtMatmulDescCreate(&desc, CUBLAS_COMPUTE_32F, CUDA_R_32F), CUBLAS_STATUS_SUCCESS);
    EXPECT_EQ(cublasLtMatmulPreferenceCreate(&preference), CUBLAS_STATUS_SUCCESS);
  }
  ~Product() {
    cublasLtMatmulPreferenceDestroy(preference);
    cublasLtMatmulDescDestroy(desc);
    cublasLtDestroy(handle);
    SetCublasLtHooks({});
  }

  template <class T>
  void Prefer(cublasLtMatmulPreferenceAttributes_t attribute, T value) {
    EXPECT_EQ(cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value, sizeof(value)),
              CUBLAS_STATUS_SUCCESS);
  }
  std::vector<cublasLtMatmulHeuristicResult_t> Ask(int requested) {
    std::vector<cublasLtMatmulHeuristicResult_t> results(requested);
    int returned = -1;
    EXPECT_EQ(cublasLtMatmulAlgoGetHeuristic(handle, desc, a.layout(), b.layout(), d.layout(), d.layout(), preference,
                                             requested, results.data(), &returned),
              CUBLAS_STATUS_SUCCESS);
    results.resize(returned);
    return results;
  }
  cublasStatus_t Run(const cublasLtMatmulAlgo_t* algo, void* workspace = nullptr, std::size_t workspace_bytes = 0,
                     cudaStream_t stream = nullptr, std::ptrdiff_t shift_bytes = 0) {
    const float one = 1.0f;
    const float zero = 0.0f;
    return cublasLtMatmul(handle, desc, &one, static_cast<unsigned char*>(a.data()) + shift_bytes, a.layout(), b.data(),
                          b.layout(), &zero, nullptr, d.layout(), d.data(), d.layout(), algo, workspace,
                          workspace_bytes, stream);
  }
  cublasStatus_t Check(const cublasLtMatmulAlgo_t& algo) {
    cublasLtMatmulHeuristicResult_t result;
    return cublasLtMatmulAlgoCheck(handle, desc, a.layout(), b.layout(), d.layout(), d.layout(), &algo, &result);
  }

  Matrix a;
  Matrix b;
  Matrix d;
  cublasLtHandle_t handle = nullptr;
  cublasLtMatmulDesc_t desc = nullptr;
  cublasLtMatmulPreference_t preference = nullptr;
};

int SplitK(const cublasLtMatmulHeuristicResult_t& result) {
  std::int32_t split_k = -1;
  std::size_t written = 0;
  EXPECT_EQ(cublasLtMatmulAlgoConfigGetAttribute(&result.algo, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, &split_k,
                                                 sizeof(split_k), &written),
            CUBLAS_STATUS_SUCCESS);
  EXPECT_EQ(written, sizeof(split_k));
  return split_k;
}

TEST(CudaShimCublasLtAlgoTest, HeuristicOffersSplitKFirstWhereItIsAllowed) {
  Product product(8, 8, 64);
  std::vector<cublasLtMatmulHeuristicResult_t> results = product.Ask(8);
  ASSERT_EQ(results.size(), 2u);
  EXPECT_EQ(SplitK(results[0]), 4);
  EXPECT_EQ(SplitK(results[1]), 1);
  EXPECT_EQ(product.Ask(1).size(), 1u);
  product.Prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, std::uint32_t{CUBLASLT_REDUCTION_SCHEME_NONE});
  results = product.Ask(8);
  ASSERT_EQ(results.size(), 1u);
  EXPECT_EQ(SplitK(results[0]), 1);
  CublasLtHooks hooks;
  hooks.always_offers_split_k = true;
  SetCublasLtHooks(hooks);
  EXPECT_EQ(product.Ask(8).size(), 2u);
}

TEST(CudaShimCublasLtAlgoTest, SumsGoUpwardsInKInAsManyPartsAsTheAlgorithmHas) {
  constexpr int kSize = 1003;
  Product product(9, 5, kSize);
  const std::vector<cublasLtMatmulHeuristicResult_t> results = product.Ask(2);
  ASSERT_EQ(results.size(), 2u);
  const auto expect_parts = [&](const cublasLtMatmulAlgo_t* algo, int part) {
    ASSERT_EQ(product.Run(algo), CUBLAS_STATUS_SUCCESS);
    const std::vector<unsigned char> bytes = product.d.Read();
    for (int i = 0; i < 9; ++i) {
      for (int j = 0; j < 5; ++j) {
        float sum = 0.0f;
        for (int k0 = 0; k0 < kSize; k0 += part) {
          float part_sum = 0.0f;
          for (int k = k0; k < std::min(k0 + part, kSize); ++k) {
            part_sum = __fadd_rn(part_sum, __fmul_rn(product.a.Initial(0, i, k), product.b.Initial(0, k, j)));
          }
          sum += part_sum;
        }
        EXPECT_EQ(product.d.At(bytes, 0, i, j), sum) << i << " " << j;
      }
    }
  };
  expect_parts(&results[0].algo, 251);
  expect_parts(&results[1].algo, kSize);
  expect_parts(nullptr, kSize);
}

TEST(CudaShimCublasLtAlgoTest, WorkspaceIsAskedForRequiredAndSpoiled) {
  Product product(8, 8, 8);
  EXPECT_EQ(product.Ask(2)[1].workspaceSize, 0u);
  product.Prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, std::uint64_t{1} << 20);
  const cublasLtMatmulHeuristicResult_t result = product.Ask(2)[1];
  ASSERT_EQ(result.workspaceSize, 4096u);
  DeviceArray<unsigned char> workspace(std::vector<unsigned char>(5000, 1));
  EXPECT_EQ(product.Run(&result.algo), CUBLAS_STATUS_INVALID_VALUE);
  EXPECT_EQ(product.Run(&result.algo, workspace.data(), 4095), CUBLAS_STATUS_INVALID_VALUE);
  EXPECT_EQ(product.Run(&result.algo, workspace.data(), 5000), CUBLAS_STATUS_SUCCESS);
  const std::vector<unsigned char> bytes = workspace.Get();
  EXPECT_EQ(std::count(bytes.begin(), bytes.end(), 0xff), 4096);
}

TEST(CudaShimCublasLtAlgoTest, PointersMustBeAlignedAsPromised) {
  Product product(8, 8, 8);
  product.Prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, std::uint32_t{16});
  const cublasLtMatmulHeuristicResult_t result = product.Ask(2)[1];
  EXPECT_EQ(product.Run(&result.algo, nullptr, 0, nullptr, 8), CUBLAS_STATUS_INVALID_VALUE);
  EXPECT_EQ(product.Run(&result.algo, nullptr, 0, nullptr, 16), CUBLAS_STATUS_SUCCESS);
  product.Prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, std::uint32_t{8});
  const cublasLtMatmulHeuristicResult_t relaxed = product.Ask(2)[1];
  EXPECT_EQ(product.Run(&relaxed.algo, nullptr, 0, nullptr, 8), CUBLAS_STATUS_SUCCESS);
}

TEST(CudaShimCublasLtAlgoTest, HooksMakeAnAlgorithmRefuseProducts) {
  Product product(8, 4, 16);
  const cublasLtMatmulAlgo_t algo = product.Ask(2)[1].algo;
  EXPECT_EQ(product.Check(algo), CUBLAS_STATUS_SUCCESS);
  CublasLtHooks hooks;
  hooks.refuses = [](std::int64_t m, std::int64_t n, std::int64_t k) { return m == 8 && n == 4 && k == 16; };
  SetCublasLtHooks(hooks);
  EXPECT_EQ(product.Check(algo), CUBLAS_STATUS_NOT_SUPPORTED);
  EXPECT_EQ(product.Run(&algo), CUBLAS_STATUS_NOT_SUPPORTED);
  EXPECT_EQ(product.Ask(2).size(), 2u);
  Product other(8, 4, 17);
  EXPECT_EQ(other.Check(algo), CUBLAS_STATUS_SUCCESS);
}

TEST(CudaShimCublasLtAlgoTest, ConfigurationIsStoredInTheAlgorithm) {
  Product product(8, 8, 8);
  int ids[4];
  int returned = 0;
  ASSERT_EQ(cublasLtMatmulAlgoGetIds(product.handle, CUBLAS_COMPUTE_32F, CUDA_R_32F, CUDA_R_32F, CUDA_R_32F, CUDA_R_32F,
                                     CUDA_R_32F, 4, ids, &returned),
            CUBLAS_STATUS_SUCCESS);
  ASSERT_EQ(returned, 1);
  cublasLtMatmulAlgo_t algo{};
  EXPECT_EQ(product.Run(&algo), CUBLAS_STATUS_INVALID_VALUE);
  ASSERT_EQ(cublasLtMatmulAlgoInit(product.handle, CUBLAS_COMPUTE_32F, CUDA_R_32F, CUDA_R_32F, CUDA_R_32F, CUDA_R_32F,
                                   CUDA_R_32F, ids[0], &algo),
            CUBLAS_STATUS_SUCCESS);
  const std::uint32_t swizzling = 1;
  ASSERT_EQ(cublasLtMatmulAlgoConfigSetAttribute(&algo, CUBLASLT_ALGO_CONFIG_CTA_SWIZZLING, &swizzling, 4),
            CUBLAS_STATUS_SUCCESS);
  std::uint32_t read = 0;
  ASSERT_EQ(cublasLtMatmulAlgoConfigGetAttribute(&algo, CUBLASLT_ALGO_CONFIG_CTA_SWIZZLING, &read, 4, nullptr),
            CUBLAS_STATUS_SUCCESS);
  EXPECT_EQ(read, 1u);
  std::size_t bytes = 0;
  ASSERT_EQ(cublasLtMatmulAlgoConfigGetAttribute(&algo, CUBLASLT_ALGO_CONFIG_CLUSTER_SHAPE_ID, nullptr, 0, &bytes),
            CUBLAS_STATUS_SUCCESS);
  EXPECT_EQ(bytes, 2u);
  EXPECT_EQ(cublasLtMatmulAlgoConfigSetAttribute(&algo, CUBLASLT_ALGO_CONFIG_CTA_SWIZZLING, &swizzling, 2),
            CUBLAS_STATUS_INVALID_VALUE);
  EXPECT_EQ(product.Run(&algo), CUBLAS_STATUS_SUCCESS);
}

TEST(CudaShimCublasLtAlgoTest, Tf32LosesBitsOfTheInputs) {
  Product product(8, 8, 8);
  ASSERT_EQ(product.Run(nullptr), CUBLAS_STATUS_SUCCESS);
  const std::vector<unsigned char> exact = product.d.Read();
  const std::int32_t tf32 = CUBLAS_COMPUTE_32F_FAST_TF32;
  ASSERT_EQ(cublasLtMatmulDescSetAttribute(product.desc, CUBLASLT_MATMUL_DESC_COMPUTE_TYPE, &tf32, sizeof(tf32)),
            CUBLAS_STATUS_SUCCESS);
  ASSERT_EQ(product.Run(nullptr), CUBLAS_STATUS_SUCCESS);
  // The inputs have 10 bits of mantissa or less, so nothing is lost.
  EXPECT_EQ(product.d.Read(), exact);
  const float third = 1.0f / 3.0f;
  ASSERT_EQ(cudaMemcpy(product.a.data(), &third, sizeof(third), cudaMemcpyHostToDevice), cudaSuccess);
  ASSERT_EQ(product.Run(nullptr), CUBLAS_STATUS_SUCCESS);
  const float rounded = product.d.At(product.d.Read(), 0, 0, 0);
  const std::int32_t f32 = CUBLAS_COMPUTE_32F_PEDANTIC;
  ASSERT_EQ(cublasLtMatmulDescSetAttribute(product.desc, CUBLASLT_MATMUL_DESC_COMPUTE_TYPE, &f32, sizeof(f32)),
            CUBLAS_STATUS_SUCCESS);
  ASSERT_EQ(product.Run(nullptr), CUBLAS_STATUS_SUCCESS);
  const float full = product.d.At(product.d.Read(), 0, 0, 0);
  EXPECT_NE(rounded, full);
  EXPECT_NEAR(rounded, full, 2e-3);
}

TEST(CudaShimCublasLtAlgoTest, WhatIsNotCoveredIsRefused) {
  Product product(8, 8, 8);
  const auto status_with = [&](cublasLtMatmulDescAttributes_t attribute, std::int32_t value) {
    std::int32_t old = 0;
    EXPECT_EQ(cublasLtMatmulDescGetAttribute(product.desc, attribute, &old, sizeof(old), nullptr),
              CUBLAS_STATUS_SUCCESS);
    EXPECT_EQ(cublasLtMatmulDescSetAttribute(product.desc, attribute, &value, sizeof(value)), CUBLAS_STATUS_SUCCESS);
    const cublasStatus_t status = product.Run(nullptr);
    EXPECT_EQ(cublasLtMatmulDescSetAttribute(product.desc, attribute, &old, sizeof(old)), CUBLAS_STATUS_SUCCESS);
    return status;
  };
  EXPECT_EQ(status_with(CUBLASLT_MATMUL_DESC_COMPUTE_TYPE, CUBLAS_COMPUTE_16F), CUBLAS_STATUS_NOT_SUPPORTED);
  EXPECT_EQ(status_with(CUBLASLT_MATMUL_DESC_SCALE_TYPE, CUDA_R_64F), CUBLAS_STATUS_NOT_SUPPORTED);
  EXPECT_EQ(status_with(CUBLASLT_MATMUL_DESC_POINTER_MODE, CUBLASLT_POINTER_MODE_DEVICE), CUBLAS_STATUS_NOT_SUPPORTED);
  EXPECT_EQ(status_with(CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_GELU), CUBLAS_STATUS_NOT_SUPPORTED);
  EXPECT_EQ(status_with(CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS), CUBLAS_STATUS_INVALID_VALUE);
  EXPECT_EQ(status_with(CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T), CUBLAS_STATUS_SUCCESS);
  Product wide(8, 8, 9);
  EXPECT_EQ(
      cublasLtMatmul(wide.handle, wide.desc, nullptr, wide.a.data(), wide.a.layout(), wide.b.data(), wide.b.layout(),
                     nullptr, nullptr, wide.d.layout(), wide.d.data(), wide.d.layout(), nullptr, nullptr, 0, nullptr),
      CUBLAS_STATUS_INVALID_VALUE);
  const float one = 1.0f;
  EXPECT_EQ(
      cublasLtMatmul(wide.handle, wide.desc, &one, wide.b.data(), wide.b.layout(), wide.b.data(), wide.b.layout(), &one,
                     wide.d.data(), wide.d.layout(), wide.d.data(), wide.d.layout(), nullptr, nullptr, 0, nullptr),
      CUBLAS_STATUS_INVALID_VALUE)
      << "9 columns times 8 rows";
  EXPECT_EQ(
      cublasLtMatmul(nullptr, wide.desc, &one, wide.a.data(), wide.a.layout(), wide.b.data(), wide.b.layout(), &one,
                     wide.d.data(), wide.d.layout(), wide.d.data(), wide.d.layout(), nullptr, nullptr, 0, nullptr),
      CUBLAS_STATUS_NOT_INITIALIZED);
  Matrix half(CUDA_R_16F, 8, 8, 1, CUBLASLT_ORDER_COL, 1);
  EXPECT_EQ(cublasLtMatmul(product.handle, product.desc, &one, half.data(), half.layout(), product.b.data(),
                           product.b.layout(), &one, product.d.data(), product.d.layout(), product.d.data(),
                           product.d.layout(), nullptr, nullptr, 0, nullptr),
            CUBLAS_STATUS_NOT_SUPPORTED);
}

TEST(CudaShimCublasLtAlgoTest, StatusesHaveNames) {
  EXPECT_STREQ(cublasLtGetStatusString(CUBLAS_STATUS_SUCCESS), "CUBLAS_STATUS_SUCCESS");
  EXPECT_STREQ(cublasLtGetStatusString(CUBLAS_STATUS_NOT_SUPPORTED), "CUBLAS_STATUS_NOT_SUPPORTED");
  EXPECT_GT(cublasLtGetVersion(), 0u);
}

}  // namespace
}  // namespace qst::cuda_shim
