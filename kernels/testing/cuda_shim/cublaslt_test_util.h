// A matrix for tests of the cuBLASLt stand-in.
#ifndef QST_KERNELS_TESTING_CUDA_SHIM_CUBLASLT_TEST_UTIL_H_
#define QST_KERNELS_TESTING_CUDA_SHIM_CUBLASLT_TEST_UTIL_H_

#include <cublasLt.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "gtest/gtest.h"

namespace qst::cuda_shim {

inline std::size_t TypeBytes(cudaDataType_t type) { return type == CUDA_R_32F ? 4 : 2; }

inline float Load(cudaDataType_t type, const unsigned char* at) {
  if (type == CUDA_R_32F) {
    float value;
    std::memcpy(&value, at, sizeof(value));
    return value;
  }
  unsigned short bits;
  std::memcpy(&bits, at, sizeof(bits));
  return type == CUDA_R_16F ? float(__ushort_as_half(bits)) : float(__ushort_as_bfloat16(bits));
}

inline void Store(cudaDataType_t type, float value, unsigned char* at) {
  if (type == CUDA_R_32F) {
    std::memcpy(at, &value, sizeof(value));
    return;
  }
  const unsigned short bits =
      type == CUDA_R_16F ? __half_as_ushort(__float2half_rn(value)) : __bfloat16_as_ushort(__float2bfloat16_rn(value));
  std::memcpy(at, &bits, sizeof(bits));
}

// A matrix in device memory with its layout; a few elements lie between its lines, and after it.
class Matrix {
 public:
  Matrix(cudaDataType_t type, std::int64_t rows, std::int64_t cols, int batches, std::int32_t order, unsigned int seed)
      : type_(type), rows_(rows), cols_(cols), order_(order) {
    ld_ = (order == CUBLASLT_ORDER_COL ? rows : cols) + 3;
    const std::int64_t lines = order == CUBLASLT_ORDER_COL ? cols : rows;
    batch_stride_ = ld_ * lines + 5;
    bytes_.resize(static_cast<std::size_t>(batch_stride_ * batches) * TypeBytes(type));
    std::mt19937 random(seed);
    for (std::size_t i = 0; i < bytes_.size(); i += TypeBytes(type)) {
      Store(type, static_cast<float>(static_cast<int>(random() % 2001) - 1000) / 512.0f, bytes_.data() + i);
    }
    EXPECT_EQ(cudaMalloc(&device_, bytes_.size()), cudaSuccess);
    EXPECT_EQ(cudaMemcpy(device_, bytes_.data(), bytes_.size(), cudaMemcpyHostToDevice), cudaSuccess);
    EXPECT_EQ(cublasLtMatrixLayoutCreate(&layout_, type, rows, cols, ld_), CUBLAS_STATUS_SUCCESS);
    EXPECT_EQ(cublasLtMatrixLayoutSetAttribute(layout_, CUBLASLT_MATRIX_LAYOUT_ORDER, &order_, sizeof(order_)),
              CUBLAS_STATUS_SUCCESS);
    const std::int32_t batch_count = batches;
    EXPECT_EQ(cublasLtMatrixLayoutSetAttribute(layout_, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &batch_count,
                                               sizeof(batch_count)),
              CUBLAS_STATUS_SUCCESS);
    EXPECT_EQ(cublasLtMatrixLayoutSetAttribute(layout_, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &batch_stride_,
                                               sizeof(batch_stride_)),
              CUBLAS_STATUS_SUCCESS);
  }
  Matrix(const Matrix&) = delete;
  Matrix& operator=(const Matrix&) = delete;
  ~Matrix() {
    EXPECT_EQ(cublasLtMatrixLayoutDestroy(layout_), CUBLAS_STATUS_SUCCESS);
    EXPECT_EQ(cudaFree(device_), cudaSuccess);
  }

  cublasLtMatrixLayout_t layout() const { return layout_; }
  void* data() const { return device_; }
  std::int64_t rows() const { return rows_; }
  std::int64_t cols() const { return cols_; }
  // As it was at the start.
  float Initial(int batch, std::int64_t i, std::int64_t j) const {
    return Load(type_, bytes_.data() + Offset(batch, i, j));
  }

  std::vector<unsigned char> Read() const {
    std::vector<unsigned char> bytes(bytes_.size());
    EXPECT_EQ(cudaMemcpy(bytes.data(), device_, bytes.size(), cudaMemcpyDeviceToHost), cudaSuccess);
    return bytes;
  }
  float At(const std::vector<unsigned char>& bytes, int batch, std::int64_t i, std::int64_t j) const {
    return Load(type_, bytes.data() + Offset(batch, i, j));
  }
  // Whether what is no element is as it was.
  bool GapsIntact(std::vector<unsigned char> bytes, int batches) const {
    for (int batch = 0; batch < batches; ++batch) {
      for (std::int64_t i = 0; i < rows_; ++i) {
        for (std::int64_t j = 0; j < cols_; ++j) {
          const std::size_t at = Offset(batch, i, j);
          std::memcpy(bytes.data() + at, bytes_.data() + at, TypeBytes(type_));
        }
      }
    }
    return bytes == bytes_;
  }

 private:
  std::size_t Offset(int batch, std::int64_t i, std::int64_t j) const {
    const std::int64_t within = order_ == CUBLASLT_ORDER_COL ? i + j * ld_ : i * ld_ + j;
    return static_cast<std::size_t>(batch * batch_stride_ + within) * TypeBytes(type_);
  }

  cudaDataType_t type_;
  std::int64_t rows_;
  std::int64_t cols_;
  std::int32_t order_;
  std::int64_t ld_;
  std::int64_t batch_stride_;
  std::vector<unsigned char> bytes_;
  void* device_ = nullptr;
  cublasLtMatrixLayout_t layout_ = nullptr;
};

}  // namespace qst::cuda_shim

#endif  // QST_KERNELS_TESTING_CUDA_SHIM_CUBLASLT_TEST_UTIL_H_
