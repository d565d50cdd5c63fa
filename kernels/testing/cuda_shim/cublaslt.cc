// cuBLASLt's objects, checks and the call itself; algorithms are in cublaslt_algo.cc, the product in matmul.cc.
#include "kernels/testing/cuda_shim/cublaslt.h"

#include <cstring>
#include <utility>

#include "kernels/testing/cuda_shim/device.h"
#include "kernels/testing/cuda_shim/guarded.h"
#include "kernels/testing/cuda_shim/stream.h"

namespace qst::cuda_shim {
namespace {

template <class T>
cublasStatus_t Set(T& field, const void* value, std::size_t bytes) {
  if (value == nullptr || bytes != sizeof(T)) return CUBLAS_STATUS_INVALID_VALUE;
  std::memcpy(&field, value, sizeof(T));
  return CUBLAS_STATUS_SUCCESS;
}

// Calls visit(field) with the field of that attribute.
template <class Desc, class Visit>
cublasStatus_t VisitDesc(Desc& desc, cublasLtMatmulDescAttributes_t attribute, const Visit& visit) {
  switch (attribute) {
    case CUBLASLT_MATMUL_DESC_COMPUTE_TYPE:
      return visit(desc.compute_type);
    case CUBLASLT_MATMUL_DESC_SCALE_TYPE:
      return visit(desc.scale_type);
    case CUBLASLT_MATMUL_DESC_POINTER_MODE:
      return visit(desc.pointer_mode);
    case CUBLASLT_MATMUL_DESC_TRANSA:
      return visit(desc.trans_a);
    case CUBLASLT_MATMUL_DESC_TRANSB:
      return visit(desc.trans_b);
    case CUBLASLT_MATMUL_DESC_TRANSC:
      return visit(desc.trans_c);
    case CUBLASLT_MATMUL_DESC_EPILOGUE:
      return visit(desc.epilogue);
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER:
      return visit(desc.bias);
    case CUBLASLT_MATMUL_DESC_BIAS_BATCH_STRIDE:
      return visit(desc.bias_batch_stride);
    case CUBLASLT_MATMUL_DESC_SM_COUNT_TARGET:
      return visit(desc.sm_count_target);
    case CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE:
      return visit(desc.bias_type);
  }
  return CUBLAS_STATUS_INVALID_VALUE;
}

template <class Layout, class Visit>
cublasStatus_t VisitLayout(Layout& layout, cublasLtMatrixLayoutAttribute_t attribute, const Visit& visit) {
  switch (attribute) {
    case CUBLASLT_MATRIX_LAYOUT_TYPE:
      return visit(layout.type);
    case CUBLASLT_MATRIX_LAYOUT_ORDER:
      return visit(layout.order);
    case CUBLASLT_MATRIX_LAYOUT_ROWS:
      return visit(layout.rows);
    case CUBLASLT_MATRIX_LAYOUT_COLS:
      return visit(layout.cols);
    case CUBLASLT_MATRIX_LAYOUT_LD:
      return visit(layout.ld);
    case CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT:
      return visit(layout.batch_count);
    case CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET:
      return visit(layout.batch_stride);
  }
  return CUBLAS_STATUS_INVALID_VALUE;
}

bool IsValid(const cublasLtMatrixLayoutOpaque_t& layout) {
  const std::uint64_t line = layout.order == CUBLASLT_ORDER_COL ? layout.rows : layout.cols;
  return layout.rows > 0 && layout.cols > 0 && layout.ld > 0 && static_cast<std::uint64_t>(layout.ld) >= line &&
         layout.batch_count > 0 && (layout.order == CUBLASLT_ORDER_COL || layout.order == CUBLASLT_ORDER_ROW);
}

StridedMatrix View(const cublasLtMatrixLayoutOpaque_t& layout, bool is_transposed) {
  StridedMatrix m;
  m.type = static_cast<cudaDataType_t>(layout.type);
  m.rows = static_cast<std::int64_t>(layout.rows);
  m.cols = static_cast<std::int64_t>(layout.cols);
  m.row_stride = layout.order == CUBLASLT_ORDER_COL ? 1 : layout.ld;
  m.col_stride = layout.order == CUBLASLT_ORDER_COL ? layout.ld : 1;
  m.batch_stride = layout.batch_stride;
  if (is_transposed) {
    std::swap(m.rows, m.cols);
    std::swap(m.row_stride, m.col_stride);
  }
  return m;
}

}  // namespace

cublasStatus_t GetAttribute(const void* field, std::size_t field_bytes, void* value, std::size_t bytes,
                            std::size_t* written) {
  if (bytes == 0) {
    if (written == nullptr) return CUBLAS_STATUS_INVALID_VALUE;
    *written = field_bytes;
    return CUBLAS_STATUS_SUCCESS;
  }
  if (value == nullptr || bytes < field_bytes) return CUBLAS_STATUS_INVALID_VALUE;
  std::memcpy(value, field, field_bytes);
  if (written != nullptr) *written = field_bytes;
  return CUBLAS_STATUS_SUCCESS;
}

bool IsSupportedType(std::int64_t type) { return type == CUDA_R_32F || type == CUDA_R_16F || type == CUDA_R_16BF; }

cublasStatus_t Describe(cublasLtMatmulDesc_t desc, cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                        cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d, MatmulProblem& problem) {
  if (desc == nullptr || a == nullptr || b == nullptr || c == nullptr || d == nullptr) {
    return CUBLAS_STATUS_INVALID_VALUE;
  }
  for (const auto* layout : {a, b, c, d}) {
    if (!IsValid(*layout)) return CUBLAS_STATUS_INVALID_VALUE;
    if (!IsSupportedType(layout->type)) return CUBLAS_STATUS_NOT_SUPPORTED;
  }
  problem.a = View(*a, desc->trans_a != CUBLAS_OP_N);
  problem.b = View(*b, desc->trans_b != CUBLAS_OP_N);
  problem.c = View(*c, false);
  problem.d = View(*d, false);
  problem.batch_count = d->batch_count;
  if (problem.a.cols != problem.b.rows || problem.a.rows != problem.d.rows || problem.b.cols != problem.d.cols ||
      problem.c.rows != problem.d.rows || problem.c.cols != problem.d.cols) {
    return CUBLAS_STATUS_INVALID_VALUE;
  }
  if (a->batch_count != d->batch_count || b->batch_count != d->batch_count || c->batch_count != d->batch_count) {
    return CUBLAS_STATUS_INVALID_VALUE;
  }
  const bool has_compute_type = desc->compute_type == CUBLAS_COMPUTE_32F ||
                                desc->compute_type == CUBLAS_COMPUTE_32F_PEDANTIC ||
                                desc->compute_type == CUBLAS_COMPUTE_32F_FAST_TF32;
  const bool has_types = a->type == b->type && c->type == d->type && (d->type == a->type || d->type == CUDA_R_32F);
  const std::int64_t bias_type = desc->bias_type == -1 ? static_cast<std::int64_t>(d->type) : desc->bias_type;
  if (!has_compute_type || !has_types || desc->scale_type != CUDA_R_32F || desc->trans_c != CUBLAS_OP_N ||
      desc->pointer_mode != CUBLASLT_POINTER_MODE_HOST || !IsSupportedType(bias_type)) {
    return CUBLAS_STATUS_NOT_SUPPORTED;
  }
  switch (desc->epilogue) {
    case CUBLASLT_EPILOGUE_DEFAULT:
    case CUBLASLT_EPILOGUE_RELU:
    case CUBLASLT_EPILOGUE_BIAS:
    case CUBLASLT_EPILOGUE_RELU_BIAS:
      break;
    default:
      return CUBLAS_STATUS_NOT_SUPPORTED;
  }
  problem.has_bias = (desc->epilogue & CUBLASLT_EPILOGUE_BIAS) != 0;
  problem.has_relu = (desc->epilogue & CUBLASLT_EPILOGUE_RELU) != 0;
  problem.bias_type = static_cast<cudaDataType_t>(bias_type);
  problem.bias_batch_stride = desc->bias_batch_stride;
  problem.round_to_tf32 = desc->compute_type == CUBLAS_COMPUTE_32F_FAST_TF32;
  return CUBLAS_STATUS_SUCCESS;
}

}  // namespace qst::cuda_shim

using namespace qst::cuda_shim;  // NOLINT: the API's functions have no namespace

const char* cublasLtGetStatusName(cublasStatus_t status) {
  switch (status) {
    case CUBLAS_STATUS_SUCCESS:
      return "CUBLAS_STATUS_SUCCESS";
    case CUBLAS_STATUS_NOT_INITIALIZED:
      return "CUBLAS_STATUS_NOT_INITIALIZED";
    case CUBLAS_STATUS_ALLOC_FAILED:
      return "CUBLAS_STATUS_ALLOC_FAILED";
    case CUBLAS_STATUS_INVALID_VALUE:
      return "CUBLAS_STATUS_INVALID_VALUE";
    case CUBLAS_STATUS_ARCH_MISMATCH:
      return "CUBLAS_STATUS_ARCH_MISMATCH";
    case CUBLAS_STATUS_MAPPING_ERROR:
      return "CUBLAS_STATUS_MAPPING_ERROR";
    case CUBLAS_STATUS_EXECUTION_FAILED:
      return "CUBLAS_STATUS_EXECUTION_FAILED";
    case CUBLAS_STATUS_INTERNAL_ERROR:
      return "CUBLAS_STATUS_INTERNAL_ERROR";
    case CUBLAS_STATUS_NOT_SUPPORTED:
      return "CUBLAS_STATUS_NOT_SUPPORTED";
    case CUBLAS_STATUS_LICENSE_ERROR:
      return "CUBLAS_STATUS_LICENSE_ERROR";
  }
  return "CUBLAS_STATUS_UNKNOWN";
}

const char* cublasLtGetStatusString(cublasStatus_t status) { return cublasLtGetStatusName(status); }

std::size_t cublasLtGetVersion() { return 130000; }
std::size_t cublasLtGetCudartVersion() { return CUDART_VERSION; }

cublasStatus_t cublasLtCreate(cublasLtHandle_t* handle) {
  if (handle == nullptr) return CUBLAS_STATUS_INVALID_VALUE;
  *handle = new cublasLtContext{CurrentDevice()};
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) {
  if (handle == nullptr) return CUBLAS_STATUS_NOT_INITIALIZED;
  delete handle;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* desc, cublasComputeType_t compute_type,
                                        cudaDataType_t scale_type) {
  if (desc == nullptr) return CUBLAS_STATUS_INVALID_VALUE;
  *desc = new cublasLtMatmulDescOpaque_t{compute_type, scale_type};
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t desc) {
  delete desc;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t desc, cublasLtMatmulDescAttributes_t attribute,
                                              const void* value, std::size_t bytes) {
  if (desc == nullptr) return CUBLAS_STATUS_INVALID_VALUE;
  return VisitDesc(*desc, attribute, [&](auto& field) { return Set(field, value, bytes); });
}

cublasStatus_t cublasLtMatmulDescGetAttribute(cublasLtMatmulDesc_t desc, cublasLtMatmulDescAttributes_t attribute,
                                              void* value, std::size_t bytes, std::size_t* written) {
  if (desc == nullptr) return CUBLAS_STATUS_INVALID_VALUE;
  return VisitDesc(*desc, attribute,
                   [&](const auto& field) { return GetAttribute(&field, sizeof(field), value, bytes, written); });
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* layout, cudaDataType_t type, std::uint64_t rows,
                                          std::uint64_t cols, std::int64_t ld) {
  if (layout == nullptr) return CUBLAS_STATUS_INVALID_VALUE;
  *layout = new cublasLtMatrixLayoutOpaque_t{static_cast<std::uint32_t>(type), CUBLASLT_ORDER_COL, rows, cols, ld};
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
  delete layout;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t layout,
                                                cublasLtMatrixLayoutAttribute_t attribute, const void* value,
                                                std::size_t bytes) {
  if (layout == nullptr) return CUBLAS_STATUS_INVALID_VALUE;
  return VisitLayout(*layout, attribute, [&](auto& field) { return Set(field, value, bytes); });
}

cublasStatus_t cublasLtMatrixLayoutGetAttribute(cublasLtMatrixLayout_t layout,
                                                cublasLtMatrixLayoutAttribute_t attribute, void* value,
                                                std::size_t bytes, std::size_t* written) {
  if (layout == nullptr) return CUBLAS_STATUS_INVALID_VALUE;
  return VisitLayout(*layout, attribute,
                     [&](const auto& field) { return GetAttribute(&field, sizeof(field), value, bytes, written); });
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* preference) {
  if (preference == nullptr) return CUBLAS_STATUS_INVALID_VALUE;
  *preference = new cublasLtMatmulPreferenceOpaque_t;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) {
  delete preference;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                    cublasLtMatmulPreferenceAttributes_t attribute, const void* value,
                                                    std::size_t bytes) {
  if (preference == nullptr || value == nullptr) return CUBLAS_STATUS_INVALID_VALUE;
  const auto set_alignment = [&](int matrix) {
    std::uint32_t alignment = 0;
    if (const cublasStatus_t status = Set(alignment, value, bytes); status != CUBLAS_STATUS_SUCCESS) return status;
    if (alignment == 0 || alignment > 4096 || (alignment & (alignment - 1)) != 0) return CUBLAS_STATUS_INVALID_VALUE;
    preference->alignments.bytes[matrix] = alignment;
    return CUBLAS_STATUS_SUCCESS;
  };
  switch (attribute) {
    case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES:
      return Set(preference->max_workspace_bytes, value, bytes);
    case CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK:
      return Set(preference->reduction_schemes, value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES:
      return set_alignment(0);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES:
      return set_alignment(1);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES:
      return set_alignment(2);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES:
      return set_alignment(3);
    // About choices that are not made here.
    case CUBLASLT_MATMUL_PREF_SEARCH_MODE:
    case CUBLASLT_MATMUL_PREF_MAX_WAVES_COUNT:
      return bytes == sizeof(std::uint32_t) ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_INVALID_VALUE;
    case CUBLASLT_MATMUL_PREF_IMPL_MASK:
      return bytes == sizeof(std::uint64_t) ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_INVALID_VALUE;
  }
  return CUBLAS_STATUS_INVALID_VALUE;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, const void* alpha, const void* a,
                              cublasLtMatrixLayout_t a_layout, const void* b, cublasLtMatrixLayout_t b_layout,
                              const void* beta, const void* c, cublasLtMatrixLayout_t c_layout, void* d,
                              cublasLtMatrixLayout_t d_layout, const cublasLtMatmulAlgo_t* algo, void* workspace,
                              std::size_t workspace_bytes, cudaStream_t stream) {
  if (handle == nullptr) return CUBLAS_STATUS_NOT_INITIALIZED;
  MatmulProblem problem;
  if (const cublasStatus_t status = Describe(desc, a_layout, b_layout, c_layout, d_layout, problem);
      status != CUBLAS_STATUS_SUCCESS) {
    return status;
  }
  if (alpha == nullptr || beta == nullptr || a == nullptr || b == nullptr || d == nullptr) {
    return CUBLAS_STATUS_INVALID_VALUE;
  }
  std::memcpy(&problem.alpha, alpha, sizeof(float));
  std::memcpy(&problem.beta, beta, sizeof(float));
  if ((problem.beta != 0.0f && c == nullptr) || (problem.has_bias && desc->bias == nullptr)) {
    return CUBLAS_STATUS_INVALID_VALUE;
  }
  std::size_t used = 0;
  if (algo != nullptr) {
    Algo decoded;
    if (!Decode(algo, decoded)) return CUBLAS_STATUS_INVALID_VALUE;
    if (HooksRefuse(problem)) return CUBLAS_STATUS_NOT_SUPPORTED;
    const void* const matrices[4] = {a, b, problem.beta != 0.0f ? c : nullptr, d};
    for (int i = 0; i < 4; ++i) {
      if (reinterpret_cast<std::uintptr_t>(matrices[i]) % decoded.alignment_bytes[i] != 0) {
        return CUBLAS_STATUS_INVALID_VALUE;
      }
    }
    used = decoded.workspace_bytes;
    if (used > workspace_bytes || (used != 0 && workspace == nullptr)) return CUBLAS_STATUS_INVALID_VALUE;
    problem.split_k = decoded.split_k();
  }
  const void* bias = desc->bias;
  const cudaError_t error = Enqueue(stream, StreamUse::kOwnDevice, [problem, a, b, c, d, bias, workspace, used] {
    // What a device would leave there is of no use to anybody.
    if (used != 0) std::memset(workspace, kFreshByte, used);
    Matmul(problem, a, b, c, bias, d);
  });
  return error == cudaSuccess ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_EXECUTION_FAILED;
}
