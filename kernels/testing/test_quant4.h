// A 4-bit weight in memory that ops of every backend can reach.
#ifndef QST_KERNELS_TESTING_TEST_QUANT4_H_
#define QST_KERNELS_TESTING_TEST_QUANT4_H_

#include <cstdint>

#include "kernels/quant/codes.h"
#include "kernels/quant/quant4.h"
#include "kernels/testing/test_memory.h"

namespace qst {

class TestQuant4 {
 public:
  // Copies the tensor; its codes begin `misalign` bytes behind an aligned address.
  explicit TestQuant4(const Quant4Tensor& tensor, int misalign = 0)
      : view_(tensor.view()),
        packed_(tensor.packed.size() + misalign),
        absmax_(tensor.absmax.begin(), tensor.absmax.end()),
        absmax_codes_(tensor.absmax_codes.begin(), tensor.absmax_codes.end()),
        nested_absmax_(tensor.nested_absmax.begin(), tensor.nested_absmax.end()),
        nested_map_(DynamicMap8(), DynamicMap8() + 256) {
    for (std::size_t i = 0; i < tensor.packed.size(); ++i) packed_[i + misalign] = tensor.packed[i];
    view_.packed = packed_.data() + misalign;
    if (tensor.double_quant) {
      view_.absmax_codes = absmax_codes_.data();
      view_.nested_absmax = nested_absmax_.data();
      view_.nested_map = nested_map_.data();
    } else {
      view_.absmax = absmax_.data();
    }
  }
  TestQuant4(const TestQuant4&) = delete;
  TestQuant4& operator=(const TestQuant4&) = delete;

  const Quant4View& view() const { return view_; }

 private:
  Quant4View view_;
  TestVector<std::uint8_t> packed_;
  TestVector<float> absmax_;
  TestVector<std::uint8_t> absmax_codes_;
  TestVector<float> nested_absmax_;
  TestVector<float> nested_map_;
};

}  // namespace qst

#endif  // QST_KERNELS_TESTING_TEST_QUANT4_H_
