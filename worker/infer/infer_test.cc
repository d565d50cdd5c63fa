#include <cmath>
#include <map>
#include <numeric>
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
      std::vector<float>& state = states_[layer];
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
  std::map<std::int64_t, std::vector<float>> states_;
};

class GeneratorTest : public testing::Test {
 protected:
  GeneratorTest() : threads_(1), norm_(FakeStream::kWidth, 1.0f) {
    ctx_.threads = &threads_;
    ctx_.isa = CpuIsa::kPortable;
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

  ThreadPool threads_;
  OpContext ctx_;
  std::vector<float> norm_;
  std::vector<float> head_;
  FrozenHead frozen_;
  GenerateOptions options_;
  FakeStream stream_;
  std::vector<std::int32_t> tokens_;
};

TEST_F(GeneratorTest, PromptGoesInOnePassThenTokenByTokenAskingForTheLastLayerOnly) {
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

TEST_F(GeneratorTest, StopTokenEndsAndIsNotGivenOut) {
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

TEST_F(GeneratorTest, SequenceNeverOutgrowsTheModel) {
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

// With caches, token by token, the side network gives what it gives for the whole sequence at once.
TEST(SideNextStateTest, PassByPassEqualsAllAtOnce) {
  constexpr std::int64_t kWidth = 32;
  constexpr std::int64_t kLayers = 3;
  constexpr std::int64_t kVocab = 11;
  BackboneDims dims;
  dims.num_layers = kLayers;
  dims.hidden_size = kWidth;
  dims.intermediate_size = 48;
  dims.num_heads = 4;
  dims.num_kv_heads = 2;
  dims.vocab_size = kVocab;
  for (const v1::SidePreset preset : {v1::SIDE_PRESET_TUNED, v1::SIDE_PRESET_REFERENCE}) {
    v1::SideConfig side;
    side.set_preset(preset);
    side.set_reduction(2);
    side.set_mix_init(0.3);
    const auto config = ResolveSideConfig(side, v1::TASK_TYPE_CAUSAL_LM, {}, dims);
    QST_ASSERT_OK(config);
    std::vector<float> norm(kWidth, 0.9f);
    std::vector<float> head;
    for (int i = 0; i < kVocab * kWidth; ++i) head.push_back(std::cos(0.37f * i));
    FrozenHead frozen;
    frozen.final_norm = Matrix(const_cast<const float*>(norm.data()), 1, kWidth);
    frozen.lm_head = WeightView::Dense(Matrix(const_cast<const float*>(head.data()), kVocab, kWidth));
    auto network = SideNetwork::Create(*config, frozen, 5);
    QST_ASSERT_OK(network);
    ThreadPool threads(1);
    OpContext ctx;
    ctx.threads = &threads;
    ctx.isa = CpuIsa::kPortable;

    constexpr std::int64_t kTokens = 9;
    std::vector<std::vector<float>> states(kLayers + 1);
    for (std::int64_t layer = 0; layer <= kLayers; ++layer) {
      for (std::int64_t i = 0; i < kTokens * kWidth; ++i) states[layer].push_back(std::sin(0.1f * i + layer));
    }
    SideBatch batch;
    batch.offsets = {0, kTokens};
    batch.rows.resize(kTokens);
    std::iota(batch.rows.begin(), batch.rows.end(), 0);
    batch.targets.assign(kTokens, 3);
    Predictions expected;
    QST_ASSERT_OK((*network)->Evaluate(
        ctx, batch,
        [&](std::int64_t layer) -> absl::StatusOr<ConstMatrixView> {
          return Matrix(const_cast<const float*>(states[layer].data()), kTokens, kWidth);
        },
        &expected));

    auto next = SideNextState::Create(network->get(), kTokens);
    QST_ASSERT_OK(next);
    EXPECT_EQ((*next)->first_layer(), 0);
    std::vector<float> out(kWidth);
    std::int64_t past = 0;
    for (const std::int64_t count : {4, 1, 1, 3}) {
      QST_ASSERT_OK((*next)->Compute(
          ctx, count,
          [&](std::int64_t layer) -> absl::StatusOr<ConstMatrixView> {
            return Matrix(const_cast<const float*>(states[layer].data()) + past * kWidth, count, kWidth);
          },
          Matrix(out.data(), 1, kWidth)));
      past += count;
      // -log softmax at the target, from the mixed state.
      double logits[kVocab];
      double total = 0.0;
      for (std::int64_t v = 0; v < kVocab; ++v) {
        logits[v] = 0.0;
        for (std::int64_t c = 0; c < kWidth; ++c) logits[v] += static_cast<double>(head[v * kWidth + c]) * out[c];
        total += std::exp(logits[v]);
      }
      EXPECT_NEAR(std::log(total) - logits[3], expected.losses[past - 1], 1e-4) << "after " << past << " tokens";
    }
    EXPECT_THAT((*next)->Compute(ctx, 1, nullptr, Matrix(out.data(), 1, kWidth)),
                StatusIs(absl::StatusCode::kInvalidArgument));
  }
}

TEST(SideNextStateTest, ClassifierCannotContinueText) {
  BackboneDims dims;
  dims.num_layers = 1;
  dims.hidden_size = 32;
  dims.intermediate_size = 48;
  dims.num_heads = 4;
  dims.num_kv_heads = 2;
  dims.vocab_size = 11;
  const auto config = ResolveSideConfig(v1::SideConfig(), v1::TASK_TYPE_CLASSIFICATION, {"a", "b"}, dims);
  QST_ASSERT_OK(config);
  std::vector<float> norm(32, 1.0f);
  FrozenHead frozen;
  frozen.final_norm = Matrix(const_cast<const float*>(norm.data()), 1, 32);
  auto network = SideNetwork::Create(*config, frozen, 1);
  QST_ASSERT_OK(network);
  EXPECT_THAT(SideNextState::Create(network->get(), 8), StatusIs(absl::StatusCode::kFailedPrecondition));
}

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
