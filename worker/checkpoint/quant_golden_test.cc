// Quantization against bitsandbytes itself (0.50.2, on a CPU; tests/oracle/quant_golden.py): every byte of codes and
// constants. bitsandbytes' CPU code and its CUDA kernels, from which most published models come, differ in four cases.
// The store follows the CUDA kernels in all of them, and this test checks that no other difference is there:
//  - FP4 has two codes for zero, 0 and 8. The kernels take 8 for what is below zero; on CPUs it is the other way round.
//    Both mean the same number.
//  - A last block that is shorter than the others is divided by its absmax on CPUs; the kernels multiply by the
//  reciprocal
//    in every block. Codes could differ where that is rounded onto a threshold; in these data none does.
//  - The absmax of a last, shorter block of zeros is 1e-38 on CPUs, 0 in the kernels.
//  - Thresholds are computed from the table on CPUs and constants in the kernels, some with another last digit: as
//  above.
// The mean of the constants (offset) is summed in another order on every device, and here in float64: it may differ in
// its last bits; nothing else of double quantization does where it does not.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "kernels/quant/codes.h"
#include "kernels/quant/quant4.h"
#include "proto/support/status_matchers.h"
#include "worker/checkpoint/safetensors_reader.h"

namespace qst {
namespace {

constexpr char kGoldenFile[] = "worker/checkpoint/testdata/bitsandbytes_quant.safetensors";

const SafetensorsReader& Golden() {
  static const std::unique_ptr<SafetensorsReader> reader = SafetensorsReader::Open(kGoldenFile).value();
  return *reader;
}

template <typename T>
std::vector<T> Read(const std::string& name) {
  const SafetensorsReader::RawTensor raw = Golden().Raw(name);
  EXPECT_NE(raw.data, nullptr) << name;
  std::vector<T> values(raw.num_bytes / sizeof(T));
  if (!values.empty()) std::memcpy(values.data(), raw.data, raw.num_bytes);
  return values;
}

template <typename T>
bool SameBytes(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

struct Case {
  std::string distribution;
  int block_size;
};

std::vector<Case> Cases() {
  std::vector<Case> cases;
  for (const char* name : {"normal", "uniform", "heavy", "zero_blocks", "constant", "denormal", "odd", "all_zero"}) {
    for (const int block_size : {64, 128, 256, 512, 1024, 2048, 4096}) cases.push_back({name, block_size});
  }
  return cases;
}

Quant4Tensor Quantized(const Case& c, Quant4Type type, bool double_quant) {
  const std::vector<float> weights = Read<float>(c.distribution + ".weights");
  return Quantize4Bit(weights.data(), 1, static_cast<std::int64_t>(weights.size()), {type, c.block_size, double_quant})
      .value();
}

// Code of the element that a nibble belongs to, with FP4's two zeros made one.
int Canonical(Quant4Type type, int code) { return type == Quant4Type::kFP4 && code == 8 ? 0 : code; }

TEST(QuantGoldenTest, TablesAreThose) {
  for (const Quant4Type type : {Quant4Type::kNF4, Quant4Type::kFP4}) {
    const std::vector<float> map = Read<float>(type == Quant4Type::kNF4 ? "nf4.quant_map" : "fp4.quant_map");
    ASSERT_EQ(map.size(), 16u);
    for (int i = 0; i < 16; ++i) EXPECT_EQ(map[i], Quant4Table(type)[i]) << i;
  }
  const std::vector<float> nested = Read<float>("nested_quant_map");
  ASSERT_EQ(nested.size(), 256u);
  EXPECT_EQ(std::memcmp(nested.data(), DynamicMap8(), 256 * sizeof(float)), 0);
}

TEST(QuantGoldenTest, CodesAreThose) {
  int num_zeros = 0;
  for (const Case& c : Cases()) {
    for (const Quant4Type type : {Quant4Type::kNF4, Quant4Type::kFP4}) {
      const std::string name =
          absl::StrCat(c.distribution, ".", type == Quant4Type::kNF4 ? "nf4" : "fp4", ".b", c.block_size, ".codes");
      const std::vector<std::uint8_t> expected = Read<std::uint8_t>(name);
      const Quant4Tensor actual = Quantized(c, type, false);
      if (type == Quant4Type::kNF4) {
        EXPECT_TRUE(SameBytes(actual.packed, expected)) << name;
        continue;
      }
      ASSERT_EQ(actual.packed.size(), expected.size()) << name;
      for (std::size_t i = 0; i < expected.size(); ++i) {
        for (const int shift : {4, 0}) {
          const int a = actual.packed[i] >> shift & 15;
          const int e = expected[i] >> shift & 15;
          ASSERT_EQ(Canonical(type, a), Canonical(type, e)) << name << " byte " << i;
          num_zeros += a != e ? 1 : 0;
        }
      }
    }
  }
  EXPECT_GT(num_zeros, 0);  // the first of the cases above is really met
}

TEST(QuantGoldenTest, ConstantsAreThose) {
  int num_tiny = 0;
  for (const Case& c : Cases()) {
    for (const Quant4Type type : {Quant4Type::kNF4, Quant4Type::kFP4}) {
      const std::string name =
          absl::StrCat(c.distribution, ".", type == Quant4Type::kNF4 ? "nf4" : "fp4", ".b", c.block_size, ".absmax");
      std::vector<float> expected = Read<float>(name);
      const Quant4Tensor actual = Quantized(c, type, false);
      // The third case.
      if (!expected.empty() && expected.back() == 1e-38f) {
        expected.back() = 0.0f;
        ++num_tiny;
      }
      EXPECT_TRUE(SameBytes(actual.absmax, expected)) << name;
    }
  }
  EXPECT_GT(num_tiny, 0);
}

TEST(QuantGoldenTest, NestedConstantsAreThose) {
  int num_equal = 0;
  for (const Case& c : Cases()) {
    // Zeros alone in a shorter block: 1e-38 is quantized there.
    if (c.distribution == "all_zero" && c.block_size > 256) continue;
    const std::string name = absl::StrCat(c.distribution, ".b", c.block_size, ".nested.");
    const float offset = Read<float>(name + "offset").front();
    const Quant4Tensor own = Quantized(c, Quant4Type::kNF4, true);
    // A few units in the last place, of float32.
    EXPECT_NEAR(own.nested_offset, offset, 4 * std::numeric_limits<float>::epsilon() * offset) << name;
    num_equal += own.nested_offset == offset ? 1 : 0;
    // Around the same offset every byte is the same.
    Quant4Tensor actual = Quantized(c, Quant4Type::kNF4, false);
    QST_ASSERT_OK(DoubleQuantize(&actual, offset));
    EXPECT_EQ(actual.nested_offset, offset) << name;
    EXPECT_TRUE(SameBytes(actual.nested_absmax, Read<float>(name + "absmax2"))) << name;
    EXPECT_TRUE(SameBytes(actual.absmax_codes, Read<std::uint8_t>(name + "absmax"))) << name;
  }
  EXPECT_GE(num_equal, 30);  // of 52: the means, too, are mostly equal
}

TEST(QuantGoldenTest, WhatIsNotFiniteIsRefusedByPlace) {
  for (const float bad : {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(),
                          std::numeric_limits<float>::quiet_NaN()}) {
    for (const Quant4Type type : {Quant4Type::kNF4, Quant4Type::kFP4}) {
      std::vector<float> weights = Read<float>("normal.weights");
      weights.resize(4096);
      weights[64 * 30 + 7] = bad;
      EXPECT_THAT(Quantize4Bit(weights.data(), 64, 64, {type, 64, true}),
                  StatusIs(absl::StatusCode::kInvalidArgument, testing::HasSubstr("element 1927 (row 30, column 7)")));
    }
  }
}

}  // namespace
}  // namespace qst
