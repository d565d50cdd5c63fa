// Weights of every kind that linear layers take, in memory that ops of every backend can reach.
#ifndef QST_KERNELS_TESTING_TEST_WEIGHT_H_
#define QST_KERNELS_TESTING_TEST_WEIGHT_H_

#include <cstdint>
#include <memory>
#include <random>
#include <vector>

#include "kernels/quant/quant4.h"
#include "kernels/tensor.h"
#include "kernels/testing/reference_linear.h"
#include "kernels/testing/test_quant4.h"

namespace qst {
namespace testing_kernels {

enum class WeightKind { kF32, kF16, kBF16, kNF4, kFP4, kNF4Plain };

inline const char* WeightKindName(WeightKind kind) {
  static constexpr const char* kNames[] = {"F32", "F16", "BF16", "NF4", "FP4", "NF4Plain"};
  return kNames[static_cast<int>(kind)];
}

inline bool IsQuantized(WeightKind kind) { return kind >= WeightKind::kNF4; }

// Of a dense weight's elements.
inline DType WeightDType(WeightKind kind) {
  return kind == WeightKind::kF16 ? DType::kF16 : kind == WeightKind::kBF16 ? DType::kBF16 : DType::kF32;
}

// Where a weight's bytes begin.
enum class WeightPlace {
  kAnywhere,  // as in a mapped file
  kElements,  // elements lie on multiples of their size
  kVectors,   // every row of a dense weight, and the codes of a 4-bit one, begin on 16 bytes
};

// A weight [rows, cols] of normal numbers, with its memory.
class TestWeight {
 public:
  TestWeight(WeightKind kind, std::int64_t rows, std::int64_t cols, int block_size, std::mt19937* random,
             WeightPlace place = WeightPlace::kAnywhere)
      : dense_(WeightDType(kind), rows, cols, place == WeightPlace::kVectors ? (cols + 7) / 8 * 8 : cols + 3,
               place == WeightPlace::kVectors                                ? 0
               : place == WeightPlace::kElements || kind == WeightKind::kF32 ? DTypeBytes(WeightDType(kind))
                                                                             : 1),
        rows_(rows),
        cols_(cols) {
    dense_.FillNormal(random);
    if (!IsQuantized(kind)) return;
    std::vector<float> floats;
    for (std::int64_t i = 0; i < rows; ++i) {
      for (std::int64_t j = 0; j < cols; ++j) floats.push_back(dense_.Get(i, j));
    }
    Quant4Options options;
    options.type = kind == WeightKind::kFP4 ? Quant4Type::kFP4 : Quant4Type::kNF4;
    options.block_size = block_size;
    options.double_quant = kind != WeightKind::kNF4Plain;
    tensor_ = Quantize4Bit(floats.data(), rows, cols, options).value();
    quant_ = std::make_unique<TestQuant4>(tensor_, place == WeightPlace::kVectors ? 0 : 1);
  }

  WeightView view() {
    return quant_ != nullptr ? WeightView::Quantized(quant_->view()) : WeightView::Dense(dense_.view());
  }
  DoubleMatrix values() const { return quant_ != nullptr ? ToDouble(tensor_.view()) : ToDouble(dense_, rows_, cols_); }

 private:
  GuardedMatrix dense_;
  Quant4Tensor tensor_;
  std::unique_ptr<TestQuant4> quant_;
  std::int64_t rows_, cols_;
};

}  // namespace testing_kernels
}  // namespace qst

#endif  // QST_KERNELS_TESTING_TEST_WEIGHT_H_
