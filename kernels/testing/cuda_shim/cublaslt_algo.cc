// Algorithms of the cuBLASLt stand-in: there is one, with k in one part or in four.
#include <algorithm>
#include <cstring>
#include <mutex>
#include <utility>

#include "cuda_shim/cublaslt_hooks.h"
#include "kernels/testing/cuda_shim/cublaslt.h"

namespace qst::cuda_shim {
namespace {

constexpr std::uint32_t kAlgoMark = 0x51735401u;
static_assert(sizeof(Algo) <= sizeof(cublasLtMatmulAlgo_t));

constexpr int kAlgoId = 7;
constexpr int kSplitK = 4;
// Asked for where the preference allows it, so that callers have to provide it.
constexpr std::uint64_t kWorkspaceBytes = 4096;

struct Hooks {
  std::mutex mutex;
  CublasLtHooks hooks;
};

Hooks& GetHooks() {
  static Hooks* hooks = new Hooks;
  return *hooks;
}

cublasLtMatmulAlgo_t Encode(const Algo& algo) {
  cublasLtMatmulAlgo_t result{};
  std::memcpy(&result, &algo, sizeof(algo));
  return result;
}

Algo NewAlgo(std::uint64_t workspace_bytes, const cublasLtAlignments& alignments) {
  Algo algo{};
  algo.config[CUBLASLT_ALGO_CONFIG_ID] = kAlgoId;
  algo.config[CUBLASLT_ALGO_CONFIG_TILE_ID] = CUBLASLT_MATMUL_TILE_128x128;
  algo.config[CUBLASLT_ALGO_CONFIG_SPLITK_NUM] = 1;
  algo.config[CUBLASLT_ALGO_CONFIG_STAGES_ID] = CUBLASLT_MATMUL_STAGES_32x4;
  algo.workspace_bytes = static_cast<std::uint32_t>(workspace_bytes);
  for (int i = 0; i < 4; ++i) algo.alignment_bytes[i] = static_cast<std::uint16_t>(alignments.bytes[i]);
  algo.mark = kAlgoMark;
  return algo;
}

cublasLtMatmulHeuristicResult_t Result(const Algo& algo) {
  cublasLtMatmulHeuristicResult_t result{};
  result.algo = Encode(algo);
  result.workspaceSize = algo.workspace_bytes;
  result.state = CUBLAS_STATUS_SUCCESS;
  result.wavesCount = 1.0f;
  return result;
}

std::size_t ConfigBytes(cublasLtMatmulAlgoConfigAttributes_t attribute) {
  const bool is_short =
      attribute == CUBLASLT_ALGO_CONFIG_INNER_SHAPE_ID || attribute == CUBLASLT_ALGO_CONFIG_CLUSTER_SHAPE_ID;
  return is_short ? sizeof(std::uint16_t) : sizeof(std::uint32_t);
}

}  // namespace

void SetCublasLtHooks(CublasLtHooks hooks) {
  Hooks& set = GetHooks();
  const std::lock_guard<std::mutex> lock(set.mutex);
  set.hooks = std::move(hooks);
}

bool HooksRefuse(const MatmulProblem& problem) {
  Hooks& set = GetHooks();
  const std::lock_guard<std::mutex> lock(set.mutex);
  return set.hooks.refuses && set.hooks.refuses(problem.d.rows, problem.d.cols, problem.a.cols);
}

bool Decode(const cublasLtMatmulAlgo_t* from, Algo& algo) {
  if (from == nullptr) return false;
  std::memcpy(&algo, from, sizeof(algo));
  return algo.mark == kAlgoMark;
}

}  // namespace qst::cuda_shim

using namespace qst::cuda_shim;  // NOLINT: the API's functions have no namespace

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t preference, int requested,
                                              cublasLtMatmulHeuristicResult_t results[], int* returned) {
  if (handle == nullptr) return CUBLAS_STATUS_NOT_INITIALIZED;
  if (preference == nullptr || requested < 1 || results == nullptr || returned == nullptr) {
    return CUBLAS_STATUS_INVALID_VALUE;
  }
  *returned = 0;
  MatmulProblem problem;
  if (const cublasStatus_t status = Describe(desc, a, b, c, d, problem); status != CUBLAS_STATUS_SUCCESS) return status;
  const std::uint64_t workspace = std::min(kWorkspaceBytes, preference->max_workspace_bytes);
  bool offers_split_k = (preference->reduction_schemes & CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE) != 0;
  {
    Hooks& set = GetHooks();
    const std::lock_guard<std::mutex> lock(set.mutex);
    offers_split_k = offers_split_k || set.hooks.always_offers_split_k;
  }
  // The better-looking one first, as a device would have it.
  Algo algo = NewAlgo(workspace, preference->alignments);
  if (offers_split_k) {
    algo.config[CUBLASLT_ALGO_CONFIG_SPLITK_NUM] = kSplitK;
    algo.config[CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME] = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
    results[(*returned)++] = Result(algo);
  }
  if (*returned < requested) results[(*returned)++] = Result(NewAlgo(workspace, preference->alignments));
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoGetIds(cublasLtHandle_t handle, cublasComputeType_t, cudaDataType_t, cudaDataType_t a,
                                        cudaDataType_t b, cudaDataType_t c, cudaDataType_t d, int requested, int ids[],
                                        int* returned) {
  if (handle == nullptr) return CUBLAS_STATUS_NOT_INITIALIZED;
  if (requested < 1 || ids == nullptr || returned == nullptr) return CUBLAS_STATUS_INVALID_VALUE;
  *returned = 0;
  for (const cudaDataType_t type : {a, b, c, d}) {
    if (!IsSupportedType(type)) return CUBLAS_STATUS_NOT_SUPPORTED;
  }
  ids[0] = kAlgoId;
  *returned = 1;
  return CUBLAS_STATUS_SUCCESS;
}

// Promises what vector accesses need.
cublasStatus_t cublasLtMatmulAlgoInit(cublasLtHandle_t handle, cublasComputeType_t, cudaDataType_t, cudaDataType_t,
                                      cudaDataType_t, cudaDataType_t, cudaDataType_t, int id,
                                      cublasLtMatmulAlgo_t* algo) {
  if (handle == nullptr) return CUBLAS_STATUS_NOT_INITIALIZED;
  if (algo == nullptr || id != kAlgoId) return CUBLAS_STATUS_INVALID_VALUE;
  *algo = Encode(NewAlgo(0, {{16, 16, 16, 16}}));
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoCheck(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, cublasLtMatrixLayout_t a,
                                       cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                       const cublasLtMatmulAlgo_t* algo, cublasLtMatmulHeuristicResult_t* result) {
  if (handle == nullptr) return CUBLAS_STATUS_NOT_INITIALIZED;
  Algo decoded;
  if (result == nullptr || !Decode(algo, decoded)) return CUBLAS_STATUS_INVALID_VALUE;
  MatmulProblem problem;
  if (const cublasStatus_t status = Describe(desc, a, b, c, d, problem); status != CUBLAS_STATUS_SUCCESS) return status;
  if (HooksRefuse(problem)) return CUBLAS_STATUS_NOT_SUPPORTED;
  *result = Result(decoded);
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoCapGetAttribute(const cublasLtMatmulAlgo_t* algo,
                                                 cublasLtMatmulAlgoCapAttributes_t attribute, void* value,
                                                 std::size_t bytes, std::size_t* written) {
  Algo decoded;
  if (!Decode(algo, decoded)) return CUBLAS_STATUS_INVALID_VALUE;
  const auto give = [&](std::int32_t number) { return GetAttribute(&number, sizeof(number), value, bytes, written); };
  switch (attribute) {
    case CUBLASLT_ALGO_CAP_CTA_SWIZZLING_SUPPORT:
    case CUBLASLT_ALGO_CAP_CUSTOM_OPTION_MAX:
      return give(0);
    case CUBLASLT_ALGO_CAP_SPLITK_SUPPORT:
    case CUBLASLT_ALGO_CAP_STRIDED_BATCH_SUPPORT:
      return give(1);
    case CUBLASLT_ALGO_CAP_REDUCTION_SCHEME_MASK:
      return give(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE);
    case CUBLASLT_ALGO_CAP_TILE_IDS:
      return give(CUBLASLT_MATMUL_TILE_128x128);
    case CUBLASLT_ALGO_CAP_STAGES_IDS:
      return give(CUBLASLT_MATMUL_STAGES_32x4);
    case CUBLASLT_ALGO_CAP_EPILOGUE_MASK:
      return give(CUBLASLT_EPILOGUE_DEFAULT | CUBLASLT_EPILOGUE_RELU | CUBLASLT_EPILOGUE_BIAS);
    case CUBLASLT_ALGO_CAP_MIN_ALIGNMENT_A_BYTES:
      return give(decoded.alignment_bytes[0]);
    case CUBLASLT_ALGO_CAP_MIN_ALIGNMENT_B_BYTES:
      return give(decoded.alignment_bytes[1]);
    case CUBLASLT_ALGO_CAP_MIN_ALIGNMENT_C_BYTES:
      return give(decoded.alignment_bytes[2]);
    case CUBLASLT_ALGO_CAP_MIN_ALIGNMENT_D_BYTES:
      return give(decoded.alignment_bytes[3]);
  }
  return CUBLAS_STATUS_INVALID_VALUE;
}

cublasStatus_t cublasLtMatmulAlgoConfigSetAttribute(cublasLtMatmulAlgo_t* algo,
                                                    cublasLtMatmulAlgoConfigAttributes_t attribute, const void* value,
                                                    std::size_t bytes) {
  Algo decoded;
  if (value == nullptr || attribute < 0 || attribute >= kNumConfigAttributes || bytes != ConfigBytes(attribute) ||
      !Decode(algo, decoded)) {
    return CUBLAS_STATUS_INVALID_VALUE;
  }
  decoded.config[attribute] = 0;
  std::memcpy(&decoded.config[attribute], value, bytes);
  *algo = Encode(decoded);
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoConfigGetAttribute(const cublasLtMatmulAlgo_t* algo,
                                                    cublasLtMatmulAlgoConfigAttributes_t attribute, void* value,
                                                    std::size_t bytes, std::size_t* written) {
  Algo decoded;
  if (attribute < 0 || attribute >= kNumConfigAttributes || !Decode(algo, decoded)) return CUBLAS_STATUS_INVALID_VALUE;
  return GetAttribute(&decoded.config[attribute], ConfigBytes(attribute), value, bytes, written);
}
