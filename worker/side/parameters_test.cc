#include "worker/side/parameters.h"

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "proto/support/status_matchers.h"
#include "worker/testing/test_device.h"

namespace qst {
namespace {

SideNetworkConfig SmolLmConfig(bool gate_per_channel) {
  BackboneDims dims;
  dims.num_layers = 30;
  dims.hidden_size = 576;
  dims.intermediate_size = 1536;
  dims.num_heads = 9;
  dims.num_kv_heads = 3;
  dims.vocab_size = 49152;
  v1::SideConfig side;
  side.set_gate_per_channel(gate_per_channel);
  const auto config = ResolveSideConfig(side, v1::TASK_TYPE_CAUSAL_LM, {}, dims);
  QST_EXPECT_OK(config);
  return *config;
}

class ParametersTest : public DeviceTest {
 protected:
  std::unique_ptr<Parameters> Make(bool gate_per_channel = false) const {
    auto parameters = Parameters::Create(ctx_, ParameterLayout(SmolLmConfig(gate_per_channel)));
    QST_EXPECT_OK(parameters);
    return *std::move(parameters);
  }
  static std::vector<float> Tensor(const Parameters& parameters, ParameterBuffer buffer, const std::string& name) {
    const ParameterInfo* const info = parameters.Find(name);
    std::vector<float> out(static_cast<std::size_t>(info->num_elems()));
    QST_EXPECT_OK(parameters.Download(buffer, *info, out.data()));
    return out;
  }
};

TEST_P(ParametersTest, StartValuesDependOnSeedAndNameOnly) {
  const std::unique_ptr<Parameters> a = Make();
  const std::unique_ptr<Parameters> b = Make(/*gate_per_channel=*/true);  // moves every offset behind the gates
  QST_ASSERT_OK(a->Initialise(7));
  QST_ASSERT_OK(b->Initialise(7));
  const auto upsample = [](const Parameters& parameters) {
    return Tensor(parameters, ParameterBuffer::kValues, "upsample.weight");
  };
  EXPECT_EQ(upsample(*a), upsample(*b));
  QST_ASSERT_OK(b->Initialise(8));
  EXPECT_NE(upsample(*a), upsample(*b));
  // The generator is part of the contract: this value is the same on every machine.
  QST_ASSERT_OK(a->Initialise(42));
  EXPECT_EQ(upsample(*a)[0], 0.0421052985f);
  const float bound = 1.0f / 6.0f;
  for (const float value : upsample(*a)) ASSERT_LE(std::abs(value), bound);
}

TEST_P(ParametersTest, GroupsAreContiguousAndAligned) {
  const std::unique_ptr<Parameters> parameters = Make();
  std::int64_t end = 0;
  for (int g = 0; g < kNumParameterGroups; ++g) {
    const Parameters::Range range = parameters->group_range(static_cast<ParameterGroup>(g));
    EXPECT_EQ(range.begin, end);
    EXPECT_GT(range.end, range.begin);
    end = range.end;
  }
  EXPECT_EQ(end, parameters->size());
  for (const ParameterInfo& info : parameters->layout()) {
    EXPECT_EQ(info.offset % 16, 0) << info.name;
    const Parameters::Range range = parameters->group_range(info.group);
    EXPECT_GE(info.offset, range.begin);
    EXPECT_LE(info.offset + info.num_elems(), range.end);
  }
}

TEST_P(ParametersTest, UploadChangesOneTensorOfOneBuffer) {
  const std::unique_ptr<Parameters> parameters = Make();
  QST_ASSERT_OK(parameters->Initialise(1));
  const ParameterInfo& info = *parameters->Find("model.z.3");
  auto expected = parameters->Download(ParameterBuffer::kExpAvg);
  QST_ASSERT_OK(expected);
  (*expected)[static_cast<std::size_t>(info.offset)] = 0.25f;
  const float value = 0.25f;
  QST_ASSERT_OK(parameters->Upload(ParameterBuffer::kExpAvg, info, &value));
  const auto actual = parameters->Download(ParameterBuffer::kExpAvg);
  QST_ASSERT_OK(actual);
  EXPECT_EQ(*expected, *actual);
  EXPECT_EQ(Tensor(*parameters, ParameterBuffer::kExpAvgSq, "model.z.3"), std::vector<float>{0.0f});
  EXPECT_EQ(Tensor(*parameters, ParameterBuffer::kExpAvg, "model.z.3"), std::vector<float>{0.25f});
}

TEST_P(ParametersTest, GapsAndGradientsStartAsZeros) {
  const std::unique_ptr<Parameters> parameters = Make();
  QST_ASSERT_OK(parameters->Initialise(1));
  const auto values = parameters->Download(ParameterBuffer::kValues);
  QST_ASSERT_OK(values);
  const ParameterInfo& gate = *parameters->Find("model.z.0");  // one float, then 15 of a gap
  for (int i = 1; i < 16; ++i) EXPECT_EQ((*values)[static_cast<std::size_t>(gate.offset + i)], 0.0f);
  for (const ParameterBuffer buffer :
       {ParameterBuffer::kGradients, ParameterBuffer::kExpAvg, ParameterBuffer::kExpAvgSq}) {
    const auto zeros = parameters->Download(buffer);
    QST_ASSERT_OK(zeros);
    EXPECT_EQ(*zeros, std::vector<float>(static_cast<std::size_t>(parameters->size())));
  }
}

QST_INSTANTIATE_DEVICE_TEST(ParametersTest);

}  // namespace
}  // namespace qst
