#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "proto/support/status_matchers.h"
#include "tests/support/shared_data.h"
#include "worker/infer/generator.h"
#include "worker/infer/sampler.h"
#include "worker/infer/side_next_state.h"
#include "worker/infer/text_stream.h"
#include "worker/side/testing/golden.h"
#include "worker/testing/test_device.h"
#include "worker/text/tokenizer.h"

namespace qst {
namespace {

using testing::HasSubstr;

TEST(SamplerTest, GreedyTakesTheFirstOfTheLargest) {
  Sampler sampler(0.0, 1);
  const std::vector<float> logits = {1.0f, 3.0f, 3.0f, std::nanf("")};
  EXPECT_EQ(sampler.Next(logits.data(), 4), 1);
  const std::vector<float> first_is_nan = {std::nanf(""), -5.0f};
  EXPECT_EQ(sampler.Next(first_is_nan.data(), 2), 1);
}

TEST(SamplerTest, SamplesFollowTheSoftmaxAndTheSeed) {
  const std::vector<float> logits = {0.0f, std::log(3.0f), -1e30f};
  Sampler sampler(1.0, 7);
  Sampler same(1.0, 7);
  int counts[3] = {};
  for (int i = 0; i < 20000; ++i) {
    const std::int32_t token = sampler.Next(logits.data(), 3);
    ASSERT_EQ(token, same.Next(logits.data(), 3));
    ++counts[token];
  }
  EXPECT_EQ(counts[2], 0);
  // Three quarters, within five standard deviations.
  EXPECT_NEAR(counts[1] / 20000.0, 0.75, 5 * std::sqrt(0.75 * 0.25 / 20000));
}

TEST(SamplerTest, LowTemperatureSharpens) {
  const std::vector<float> logits = {0.0f, 1.0f};
  Sampler sampler(0.05, 3);
  for (int i = 0; i < 100; ++i) EXPECT_EQ(sampler.Next(logits.data(), 2), 1);
}

// Token t gives the state [t + 1, t + 2, ...]; layer i adds i.
class FakeStream : public HiddenStateStream {
 public:
  static constexpr std::int64_t kWidth = 4;
  std::int64_t num_layers() const override { return 2; }
  std::int64_t hidden_size() const override { return kWidth; }
  absl::Status Submit(TokenPass pass, std::int64_t first_layer) override {
    EXPECT_TRUE(pass.uses_kv_cache);
    EXPECT_EQ(pass.past_tokens, num_past);
    num_past += static_cast<std::int32_t>(pass.num_tokens());
    first_layers.push_back(first_layer);
    passes.push_back(pass.tokens);
    for (std::int64_t layer = first_layer; layer <= 2; ++layer) {
      TestVector<float>& state = states_[layer];
      state.clear();
      for (std::int32_t token : pass.tokens) {
        for (std::int64_t c = 0; c < kWidth; ++c) state.push_back(std::sin(1.0f + token + 0.7f * c + layer));
      }
    }
    return absl::OkStatus();
  }
  absl::StatusOr<ConstMatrixView> Wait(std::uint64_t, std::int64_t layer) override {
    return Matrix(const_cast<const float*>(states_[layer].data()), static_cast<std::int64_t>(passes.back().size()),
                  kWidth);
  }
  void Release(std::uint64_t) override {}
  void Abort(const absl::Status&) override {}

  std::int32_t num_past = 0;
  std::vector<std::int64_t> first_layers;
  std::vector<std::vector<std::int32_t>> passes;

 private:
  std::map<std::int64_t, TestVector<float>> states_;
};

class GeneratorTest : public DeviceTest {
 protected:
  GeneratorTest() : norm_(FakeStream::kWidth, 1.0f) {
    frozen_.final_norm = Matrix(const_cast<const float*>(norm_.data()), 1, FakeStream::kWidth);
    // [V = 6, d]: any numbers that give different tokens.
    for (int i = 0; i < 6 * FakeStream::kWidth; ++i) head_.push_back(std::cos(1.3f * i));
    frozen_.lm_head = WeightView::Dense(Matrix(const_cast<const float*>(head_.data()), 6, FakeStream::kWidth));
    options_.max_tokens = 100;
    options_.max_new_tokens = 5;
  }
  absl::StatusOr<std::string> Run(NextState* next, const std::vector<std::int32_t>& prompt) {
    stream_ = FakeStream();
    tokens_.clear();
    Generator generator(&stream_, next, frozen_.lm_head, ctx_);
    return generator.Run(prompt, options_, [this](std::int32_t token) {
      tokens_.push_back(token);
      return absl::OkStatus();
    });
  }

  TestVector<float> norm_;
  TestVector<float> head_;
  FrozenHead frozen_;
  GenerateOptions options_;
  FakeStream stream_;
  std::vector<std::int32_t> tokens_;
};

TEST_P(GeneratorTest, PromptGoesInOnePassThenTokenByTokenAskingForTheLastLayerOnly) {
  BackboneNextState next(frozen_, 2);
  const auto reason = Run(&next, {3, 1, 4});
  QST_ASSERT_OK(reason);
  EXPECT_EQ(*reason, "length");
  ASSERT_EQ(tokens_.size(), 5u);
  ASSERT_EQ(stream_.passes.size(), 5u);
  EXPECT_EQ(stream_.passes[0], (std::vector<std::int32_t>{3, 1, 4}));
  for (std::size_t i = 1; i < 5; ++i) EXPECT_EQ(stream_.passes[i], std::vector<std::int32_t>{tokens_[i - 1]});
  EXPECT_EQ(stream_.first_layers, std::vector<std::int64_t>(5, 2));
}

TEST_P(GeneratorTest, StopTokenEndsAndIsNotGivenOut) {
  BackboneNextState next(frozen_, 2);
  QST_ASSERT_OK(Run(&next, {3, 1, 4}));
  const std::vector<std::int32_t> all = tokens_;
  options_.stop_ids = {all[2]};
  const auto reason = Run(&next, {3, 1, 4});
  QST_ASSERT_OK(reason);
  EXPECT_EQ(*reason, "stop");
  const std::size_t first = static_cast<std::size_t>(std::find(all.begin(), all.end(), all[2]) - all.begin());
  EXPECT_EQ(tokens_, std::vector<std::int32_t>(all.begin(), all.begin() + static_cast<std::ptrdiff_t>(first)));
}

TEST_P(GeneratorTest, SequenceNeverOutgrowsTheModel) {
  BackboneNextState next(frozen_, 2);
  options_.max_tokens = 5;
  const auto reason = Run(&next, {3, 1, 4});
  QST_ASSERT_OK(reason);
  EXPECT_EQ(*reason, "length");
  EXPECT_EQ(tokens_.size(), 3u);  // the last one has no place to be read from, only to be written
  EXPECT_LE(stream_.num_past, 5);
  EXPECT_THAT(Run(&next, {1, 2, 3, 4, 5}), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("5 tokens")));
  EXPECT_THAT(Run(&next, {}), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("empty")));
}

QST_INSTANTIATE_DEVICE_TEST(GeneratorTest);

struct GoldenParam {
  std::string name;
  DeviceType device;
};

// The side network of a golden case, and the head applied to what is computed for the first sequence, of 5 tokens.
class SideNextStateTest : public testing::TestWithParam<GoldenParam> {
 protected:
  static constexpr std::int64_t kTokens = 5;
  SideNextStateTest() : threads_(2), golden_(GetParam().name) {}
  void SetUp() override {
    QST_SKIP_WITHOUT_DEVICE(GetParam().device);
    ctx_ = TestDeviceContext(GetParam().device, &threads_);
    auto network = SideNetwork::Create(ctx_, golden_.config(), golden_.frozen(), 1);
    QST_ASSERT_OK(network);
    network_ = *std::move(network);
    golden_.LoadParameters(&network_->parameters());
    out_.resize(static_cast<std::size_t>(golden_.config().backbone.hidden_size));
  }
  HiddenStateSource Tokens(std::int64_t begin, std::int64_t end) const {
    const HiddenStateSource all = golden_.HiddenStates(DType::kBF16);
    return [=](std::int64_t layer) -> absl::StatusOr<ConstMatrixView> { return Rows(*all(layer), begin, end); };
  }
  std::unique_ptr<SideNextState> MakeNextState(std::int64_t max_tokens) const {
    auto next_state = SideNextState::Create(ctx_, network_.get(), max_tokens);
    QST_EXPECT_OK(next_state);
    return *std::move(next_state);
  }
  // The state after the tokens [begin, end).
  std::vector<float> Compute(NextState* next_state, std::int64_t begin, std::int64_t end) {
    QST_EXPECT_OK(next_state->Compute(ctx_, end - begin, Tokens(begin, end), Out()));
    const TestVector<float>& out = Synced(out_);
    return std::vector<float>(out.begin(), out.end());
  }
  MatrixView Out() { return Matrix(out_.data(), 1, static_cast<std::int64_t>(out_.size())); }
  // -log softmax at the target.
  double LossOf(const std::vector<float>& state, std::int32_t target) const {
    const ConstMatrixView& head = golden_.frozen().lm_head.dense;
    std::vector<double> logits(static_cast<std::size_t>(head.rows));
    double sum = 0.0;
    for (std::int64_t v = 0; v < head.rows; ++v) {
      for (std::int64_t c = 0; c < head.cols; ++c) logits[v] += static_cast<double>(head.row<float>(v)[c]) * state[c];
      sum += std::exp(logits[v]);
    }
    return std::log(sum) - logits[target];
  }

  ThreadPool threads_;
  OpContext ctx_;
  GoldenCase golden_;
  std::unique_ptr<SideNetwork> network_;
  TestVector<float> out_;
};

// With caches, however the sequence is cut, the side network gives what it gives for the whole sequence at once.
TEST_P(SideNextStateTest, PassByPassEqualsAllAtOnce) {
  SideBatch batch;
  batch.offsets = {0, kTokens};
  batch.rows = {0, 1, 2, 3, 4};
  batch.targets = {3, 1, 4, 1, 5};
  QST_ASSERT_OK(network_->Evaluate(batch, Tokens(0, kTokens)));
  const auto expected = network_->FetchPredictions();
  QST_ASSERT_OK(expected);

  const std::unique_ptr<SideNextState> one_by_one = MakeNextState(kTokens);
  EXPECT_EQ(one_by_one->first_layer(), 0);
  std::vector<std::vector<float>> states;
  for (std::int64_t t = 0; t < kTokens; ++t) {
    states.push_back(Compute(one_by_one.get(), t, t + 1));
    EXPECT_NEAR(LossOf(states.back(), batch.targets[t]), expected->losses[t], 1e-5) << "after " << t + 1 << " tokens";
  }
  const std::unique_ptr<SideNextState> in_two = MakeNextState(kTokens);
  EXPECT_EQ(Compute(in_two.get(), 0, 3), states[2]);
  EXPECT_EQ(Compute(in_two.get(), 3, kTokens), states[4]);
}

TEST_P(SideNextStateTest, RefusesMoreTokensThanThereIsRoomFor) {
  const std::unique_ptr<SideNextState> next_state = MakeNextState(2);
  EXPECT_THAT(next_state->Compute(ctx_, 3, Tokens(0, 3), Out()), StatusIs(absl::StatusCode::kInvalidArgument));
  QST_EXPECT_OK(next_state->Compute(ctx_, 2, Tokens(0, 2), Out()));
  EXPECT_THAT(next_state->Compute(ctx_, 1, Tokens(2, 3), Out()), StatusIs(absl::StatusCode::kInvalidArgument));
}

std::vector<GoldenParam> GoldenParams() {
  std::vector<GoldenParam> out;
  for (const char* name : {"paper_causal_lm", "linear_causal_lm", "avgpool_causal_lm"}) {
    for (const DeviceType device : {DeviceType::kCpu, DeviceType::kCuda}) out.push_back({name, device});
  }
  return out;
}
INSTANTIATE_TEST_SUITE_P(Cases, SideNextStateTest, testing::ValuesIn(GoldenParams()), [](const auto& info) {
  return info.param.name + "_" + TestDeviceName(info.param.device);
});

class NextStateTest : public DeviceTest {};

TEST_P(NextStateTest, AFreshSideNetworkIsTheUntouchedModelToTheLastBit) {
  const GoldenCase golden("untouched_causal_lm");
  auto network = SideNetwork::Create(ctx_, golden.config(), golden.frozen(), 1);
  QST_ASSERT_OK(network);
  const auto fresh = SideNextState::Create(ctx_, network->get(), 10);
  QST_ASSERT_OK(fresh);
  const std::int64_t width = golden.config().backbone.hidden_size;
  BackboneNextState untouched(golden.frozen(), golden.config().backbone.num_layers);
  EXPECT_EQ(untouched.first_layer(), 2);
  TestVector<float> expected(static_cast<std::size_t>(width));
  TestVector<float> actual(static_cast<std::size_t>(width));
  const HiddenStateSource states = golden.HiddenStates(DType::kBF16);
  QST_ASSERT_OK(untouched.Compute(ctx_, 10, states, Matrix(expected.data(), 1, width)));
  QST_ASSERT_OK((*fresh)->Compute(ctx_, 10, states, Matrix(actual.data(), 1, width)));
  EXPECT_EQ(Synced(expected), Synced(actual));
}

TEST_P(NextStateTest, ClassifierCannotContinueText) {
  const GoldenCase golden("reference_classification");
  auto network = SideNetwork::Create(ctx_, golden.config(), golden.frozen(), 1);
  QST_ASSERT_OK(network);
  EXPECT_THAT(SideNextState::Create(ctx_, network->get(), 8), StatusIs(absl::StatusCode::kFailedPrecondition));
}

QST_INSTANTIATE_DEVICE_TEST(NextStateTest);

TEST(TextStreamTest, PiecesAreWholeCharactersAndJoinToTheText) {
  const auto folder = SharedDataPath("models/stories260K-hf");
  if (!folder.has_value()) GTEST_SKIP() << "no shared data folder";
  const auto tokenizer = Tokenizer::FromModelFolder(*folder);
  QST_ASSERT_OK(tokenizer);
  // A vocabulary of 512: everything beyond ASCII is made of byte tokens.
  const std::string text = "Once upon a time, \xC3\xA9t\xC3\xA9 \xE2\x82\xAC \xF0\x9F\x98\x80!";
  const auto ids = (*tokenizer)->Encode(text, /*add_special=*/true);
  QST_ASSERT_OK(ids);
  for (std::size_t prompt_size : {std::size_t{1}, std::size_t{3}, std::size_t{7}}) {
    const std::vector<std::int32_t> prompt(ids->begin(), ids->begin() + static_cast<std::ptrdiff_t>(prompt_size));
    TextStream stream(tokenizer->get(), prompt);
    std::string joined;
    for (std::size_t i = prompt_size; i < ids->size(); ++i) {
      const std::string piece = stream.Add((*ids)[i]);
      if (!piece.empty()) {
        EXPECT_NE(static_cast<unsigned char>(piece[0]) & 0xC0, 0x80) << "a piece begins inside a character";
        EXPECT_EQ(piece.find("\xEF\xBF\xBD"), std::string::npos);
      }
      joined += piece;
    }
    joined += stream.Finish();
    EXPECT_EQ((*tokenizer)->Decode(prompt, true) + joined, text) << "prompt of " << prompt_size;
  }
}

TEST(TextStreamTest, BytesThatAreNoCharacterComeOutAsReplacement) {
  const auto folder = SharedDataPath("models/stories260K-hf");
  if (!folder.has_value()) GTEST_SKIP() << "no shared data folder";
  const auto tokenizer = Tokenizer::FromModelFolder(*folder);
  QST_ASSERT_OK(tokenizer);
  const auto half = (*tokenizer)->TokenToId("<0xE2>");
  ASSERT_TRUE(half.has_value());
  TextStream stream(tokenizer->get(), {1});
  EXPECT_EQ(stream.Add(*half), "");
  EXPECT_THAT(stream.Finish(), HasSubstr("\xEF\xBF\xBD"));
}

}  // namespace
}  // namespace qst
