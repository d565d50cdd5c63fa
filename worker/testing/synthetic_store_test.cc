#include "worker/testing/synthetic_store.h"

#include <sys/stat.h>

#include <cmath>
#include <memory>
#include <string>

#include "gtest/gtest.h"
#include "proto/support/status_matchers.h"
#include "worker/checkpoint/stored_model.h"
#include "worker/testing/tiny_model.h"

namespace qst {
namespace {

TEST(SyntheticStoreTest, RandomWeightsAreThoseOfAnUsualModel) {
  const std::string folder = MakeTestFolder("random");
  const ModelConfig config = PublishedShape("tiny").value();
  QST_ASSERT_OK(WriteSyntheticStore(config, StoreQuantization(), SyntheticWeights::kRandom, folder));
  const std::unique_ptr<StoredModel> model = StoredModel::Open(folder).value();
  EXPECT_EQ(model->config().num_layers, 3);
  const WeightView q = model->Weight("model.layers.1.self_attn.q_proj.weight").value();
  ASSERT_TRUE(q.is_quantized);
  std::vector<float> values(static_cast<std::size_t>(q.rows() * q.cols()));
  DequantizeRange(q.quant4, 0, q.rows() * q.cols(), values.data());
  double squares = 0.0;
  for (const float value : values) squares += static_cast<double>(value) * value;
  const double rms = std::sqrt(squares / static_cast<double>(values.size()));
  EXPECT_GT(rms, 0.01);
  EXPECT_LT(rms, 0.05);
  EXPECT_EQ(model->Floats("model.norm.weight").value(), std::vector<float>(128, 1.0f));
}

TEST(SyntheticStoreTest, HolesTakeNoDisk) {
  const std::string folder = MakeTestFolder("holes");
  ModelConfig config = PublishedShape("tiny").value();
  config.vocab_size = 1 << 20;
  QST_ASSERT_OK(WriteSyntheticStore(config, StoreQuantization(), SyntheticWeights::kHoles, folder));
  QST_ASSERT_OK(StoredModel::Open(folder).status());
  struct stat info;
  ASSERT_EQ(::stat((folder + "/model.safetensors").c_str(), &info), 0);
  EXPECT_GT(info.st_size, 256 << 20);
  EXPECT_LT(info.st_blocks * 512, 4 << 20);
}

TEST(SyntheticStoreTest, ShapesHaveTheirParameters) {
  EXPECT_EQ(PublishedShape("llama-2-7b")->NumParameters(), 6'738'415'616);
  EXPECT_EQ(PublishedShape("llama-2-70b")->NumParameters(), 68'976'648'192);
  EXPECT_FALSE(PublishedShape("gpt-5").ok());
}

}  // namespace
}  // namespace qst
