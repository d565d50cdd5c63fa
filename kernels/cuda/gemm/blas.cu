#include <cublasLt.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/cuda/check.h"
#include "kernels/cuda/gemm/blas.cuh"
#include "kernels/cuda/gemm/plan.h"
#include "proto/support/status_macros.h"

namespace qst {
namespace cuda {
namespace {

constexpr std::uint32_t kAlignmentBytes = 16;
// Heuristics are asked for this many algorithms, of which the first that splits no sum is taken.
constexpr int kMaxCandidates = 32;

cudaDataType_t CudaType(DType dtype) {
  return dtype == DType::kF32 ? CUDA_R_32F : dtype == DType::kF16 ? CUDA_R_16F : CUDA_R_16BF;
}

// The objects that describe a product to cuBLASLt. It knows columns first: out^T = right^T left^T, so its A is `right`
// and its B is `left`.
class Description {
 public:
  Description() = default;
  ~Description() {
    if (product != nullptr) cublasLtMatmulDescDestroy(product);
    for (cublasLtMatrixLayout_t layout : {a, b, d}) {
      if (layout != nullptr) cublasLtMatrixLayoutDestroy(layout);
    }
  }
  Description(const Description&) = delete;
  Description& operator=(const Description&) = delete;

  absl::Status Init(const ProductShape& s, const ProductLayout& layout, const void* bias, bool allow_tf32) {
    const bool is_tf32 = allow_tf32 && s.factor == DType::kF32;
    QST_CUDA_RETURN_IF_ERROR(
        cublasLtMatmulDescCreate(&product, is_tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F, CUDA_R_32F));
    const cublasOperation_t transpose_a = s.right_is_transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
    const cublasOperation_t transpose_b = s.left_is_transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
    QST_RETURN_IF_ERROR(Set(CUBLASLT_MATMUL_DESC_TRANSA, transpose_a));
    QST_RETURN_IF_ERROR(Set(CUBLASLT_MATMUL_DESC_TRANSB, transpose_b));
    if (s.has_bias) {
      QST_RETURN_IF_ERROR(Set(CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS));
      QST_RETURN_IF_ERROR(Set(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, CudaType(s.out)));
      QST_RETURN_IF_ERROR(Set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias));
    }
    const DType factor = s.factor;
    QST_RETURN_IF_ERROR(s.right_is_transposed
                            ? InitLayout(factor, s.k, s.n, layout.right_ld, s.batch, layout.right_stride, &a)
                            : InitLayout(factor, s.n, s.k, layout.right_ld, s.batch, layout.right_stride, &a));
    QST_RETURN_IF_ERROR(s.left_is_transposed
                            ? InitLayout(factor, s.m, s.k, layout.left_ld, s.batch, layout.left_stride, &b)
                            : InitLayout(factor, s.k, s.m, layout.left_ld, s.batch, layout.left_stride, &b));
    return InitLayout(s.out, s.n, s.m, layout.out_ld, s.batch, layout.out_stride, &d);
  }

  cublasLtMatmulDesc_t product = nullptr;
  cublasLtMatrixLayout_t a = nullptr;
  cublasLtMatrixLayout_t b = nullptr;
  cublasLtMatrixLayout_t d = nullptr;

 private:
  template <typename T>
  absl::Status Set(cublasLtMatmulDescAttributes_t attribute, const T& value) {
    return ToStatus(cublasLtMatmulDescSetAttribute(product, attribute, &value, sizeof(value)),
                    absl::StrCat("cublasLtMatmulDescSetAttribute ", static_cast<int>(attribute)));
  }

  static absl::Status InitLayout(DType dtype, std::int64_t rows, std::int64_t cols, std::int64_t ld, std::int64_t batch,
                                 std::int64_t stride, cublasLtMatrixLayout_t* layout) {
    QST_CUDA_RETURN_IF_ERROR(cublasLtMatrixLayoutCreate(layout, CudaType(dtype), static_cast<std::uint64_t>(rows),
                                                        static_cast<std::uint64_t>(cols), ld));
    if (batch == 1) return absl::OkStatus();
    const std::int32_t count = static_cast<std::int32_t>(batch);
    QST_CUDA_RETURN_IF_ERROR(
        cublasLtMatrixLayoutSetAttribute(*layout, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count, sizeof(count)));
    QST_CUDA_RETURN_IF_ERROR(cublasLtMatrixLayoutSetAttribute(*layout, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET,
                                                              &stride, sizeof(stride)));
    return absl::OkStatus();
  }
};

// What the heuristics may choose: no split sums, operands on 16 bytes.
class Preference {
 public:
  Preference() = default;
  ~Preference() {
    if (handle != nullptr) cublasLtMatmulPreferenceDestroy(handle);
  }
  Preference(const Preference&) = delete;
  Preference& operator=(const Preference&) = delete;

  absl::Status Init() {
    QST_CUDA_RETURN_IF_ERROR(cublasLtMatmulPreferenceCreate(&handle));
    const std::uint64_t workspace = kBlasWorkspaceBytes;
    const std::uint32_t no_reduction = CUBLASLT_REDUCTION_SCHEME_NONE;
    QST_RETURN_IF_ERROR(Set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, workspace));
    QST_RETURN_IF_ERROR(Set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, no_reduction));
    for (const cublasLtMatmulPreferenceAttributes_t operand :
         {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
          CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES}) {
      QST_RETURN_IF_ERROR(Set(operand, kAlignmentBytes));
    }
    return absl::OkStatus();
  }

  cublasLtMatmulPreference_t handle = nullptr;

 private:
  template <typename T>
  absl::Status Set(cublasLtMatmulPreferenceAttributes_t attribute, const T& value) {
    return ToStatus(cublasLtMatmulPreferenceSetAttribute(handle, attribute, &value, sizeof(value)),
                    absl::StrCat("cublasLtMatmulPreferenceSetAttribute ", static_cast<int>(attribute)));
  }
};

// Whether each output element is one chain of additions. An algorithm that does not know these settings does not split.
bool SplitsNoSum(const cublasLtMatmulAlgo_t& algorithm) {
  std::int32_t num_splits = 1;
  std::uint32_t reduction = CUBLASLT_REDUCTION_SCHEME_NONE;
  std::size_t written = 0;
  if (cublasLtMatmulAlgoConfigGetAttribute(&algorithm, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, &num_splits, sizeof(num_splits),
                                           &written) == CUBLAS_STATUS_SUCCESS &&
      num_splits > 1) {
    return false;
  }
  return cublasLtMatmulAlgoConfigGetAttribute(&algorithm, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME, &reduction,
                                              sizeof(reduction), &written) != CUBLAS_STATUS_SUCCESS ||
         reduction == CUBLASLT_REDUCTION_SCHEME_NONE;
}

std::string ToString(const ProductShape& s) {
  return absl::StrCat("product [", s.m, ", ", s.k, "] x [", s.k, ", ", s.n, "] in ", DTypeName(s.factor), " to ",
                      DTypeName(s.out), s.batch > 1 ? absl::StrCat(", ", s.batch, " times") : "",
                      s.has_bias ? ", with bias" : "");
}

// As if every matrix were stored without gaps.
ProductLayout CompactLayout(const ProductShape& s) {
  ProductLayout layout;
  layout.left_ld = PaddedCols(s.left_is_transposed ? s.m : s.k, s.factor);
  layout.right_ld = PaddedCols(s.right_is_transposed ? s.k : s.n, s.factor);
  layout.out_ld = PaddedCols(s.n, s.out);
  layout.left_stride = (s.left_is_transposed ? s.k : s.m) * layout.left_ld;
  layout.right_stride = (s.right_is_transposed ? s.n : s.k) * layout.right_ld;
  layout.out_stride = s.m * layout.out_ld;
  return layout;
}

}  // namespace

Blas::~Blas() { stream_->device->Free(workspace_); }

absl::Status Blas::AllocateWorkspace() {
  QST_ASSIGN_OR_RETURN(workspace_, stream_->device->Allocate(kBlasWorkspaceBytes));
  return absl::OkStatus();
}

Blas::Key Blas::KeyOf(const ProductShape& s, bool allow_tf32) {
  return {s.m,
          s.n,
          s.k,
          s.batch,
          static_cast<std::int64_t>(s.factor),
          static_cast<std::int64_t>(s.out),
          s.left_is_transposed,
          s.right_is_transposed,
          s.has_bias,
          allow_tf32};
}

absl::StatusOr<Blas::Plan*> Blas::PlanOf(const ProductShape& pinned) {
  const Key key = KeyOf(pinned, stream_->allow_tf32);
  const auto found = plans_.find(key);
  if (found != plans_.end()) return &found->second;

  Description description;
  // The workspace stands for a bias: its alignment is all that matters.
  QST_RETURN_IF_ERROR(description.Init(pinned, CompactLayout(pinned), workspace_, stream_->allow_tf32));
  Preference preference;
  QST_RETURN_IF_ERROR(preference.Init());
  std::array<cublasLtMatmulHeuristicResult_t, kMaxCandidates> candidates = {};
  int num_candidates = 0;
  const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(
      stream_->blas, description.product, description.a, description.b, description.d, description.d, preference.handle,
      kMaxCandidates, candidates.data(), &num_candidates);
  for (int i = 0; status == CUBLAS_STATUS_SUCCESS && i < num_candidates; ++i) {
    const cublasLtMatmulHeuristicResult_t& candidate = candidates[i];
    if (candidate.state != CUBLAS_STATUS_SUCCESS || candidate.workspaceSize > kBlasWorkspaceBytes) continue;
    if (!SplitsNoSum(candidate.algo)) continue;
    Plan plan;
    plan.algorithm = candidate.algo;
    return &plans_.emplace(key, plan).first->second;
  }
  return absl::InternalError(absl::StrCat("cuBLASLt has no algorithm without split-K for a ", ToString(pinned), ": ",
                                          cublasLtGetStatusString(status), ", ", num_candidates, " candidates"));
}

absl::StatusOr<bool> Blas::Takes(const ProductShape& pinned, const ProductShape& shape, const ProductLayout& layout) {
  QST_ASSIGN_OR_RETURN(Plan* const plan, PlanOf(pinned));
  const std::array<std::int64_t, 10> question = {shape.m,
                                                 shape.n,
                                                 shape.k,
                                                 shape.batch,
                                                 layout.left_ld,
                                                 layout.right_ld,
                                                 layout.out_ld,
                                                 layout.left_stride,
                                                 layout.right_stride,
                                                 layout.out_stride};
  if (plan->checked == question) return plan->takes_checked;
  Description description;
  QST_RETURN_IF_ERROR(description.Init(shape, layout, workspace_, stream_->allow_tf32));
  cublasLtMatmulHeuristicResult_t result = {};
  const cublasStatus_t status =
      cublasLtMatmulAlgoCheck(stream_->blas, description.product, description.a, description.b, description.d,
                              description.d, &plan->algorithm, &result);
  plan->checked = question;
  plan->takes_checked = status == CUBLAS_STATUS_SUCCESS && result.workspaceSize <= kBlasWorkspaceBytes;
  return plan->takes_checked;
}

absl::Status Blas::Multiply(const ProductShape& pinned, const ProductShape& shape, const ProductLayout& layout,
                            const ProductOperands& operands) {
  QST_ASSIGN_OR_RETURN(Plan* const plan, PlanOf(pinned));
  Description description;
  QST_RETURN_IF_ERROR(description.Init(shape, layout, operands.bias, stream_->allow_tf32));
  const float alpha = 1.0f;
  const float beta = operands.accumulate ? 1.0f : 0.0f;
  return ToStatus(cublasLtMatmul(stream_->blas, description.product, &alpha, operands.right, description.a,
                                 operands.left, description.b, &beta, operands.out, description.d, operands.out,
                                 description.d, &plan->algorithm, workspace_, kBlasWorkspaceBytes, stream_->handle),
                  absl::StrCat("cublasLtMatmul: ", ToString(shape)));
}

}  // namespace cuda
}  // namespace qst
