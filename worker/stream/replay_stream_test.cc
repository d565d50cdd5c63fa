#include "worker/stream/replay_stream.h"

#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/synchronization/notification.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/support/status_matchers.h"
#include "worker/stream/testing/fake_pipeline.h"
#include "worker/testing/test_device.h"

namespace qst {
namespace {

using testing::HasSubstr;

const std::vector<int> kLengths = {7, 64, 1, 33, 20, 64};

absl::Status Lost() { return absl::UnavailableError("the connection to stage 1 was lost"); }

// Makes pipelines, one after another, and loses stages of the newest.
class Cluster {
 public:
  // `side`: context of whoever reads the states, which outlives pipelines.
  explicit Cluster(const OpContext& side) : side_(side) {}

  std::shared_ptr<LiveStream> Start(int num_stages) {
    auto pipeline = std::make_shared<Pipeline>(side_.device, num_stages, Way::kInProcess, DType::kBF16, 0, &side_);
    if (prepare) prepare(*pipeline);
    pipeline->Start();
    newest_ = pipeline;
    num_stages_ = num_stages;
    ++num_started_;
    return std::shared_ptr<LiveStream>(pipeline, &pipeline->stream());
  }
  void Lose(int stage, const absl::Status& reason = Lost()) { newest_.lock()->transport(stage).Abort(reason); }
  std::weak_ptr<Pipeline> newest() const { return newest_; }
  int num_stages() const { return num_stages_; }
  int num_started() const { return num_started_; }

  // Called before a pipeline's stages run.
  std::function<void(Pipeline&)> prepare;

 private:
  const OpContext side_;
  std::weak_ptr<Pipeline> newest_;
  int num_stages_ = 0;
  int num_started_ = 0;
};

using Hook = std::function<void(std::uint64_t pass_id, std::int64_t layer)>;

// All states of the passes, the next pass always submitted before; `before` is called before each Wait.
std::vector<std::string> ReadAll(const OpContext& ctx, ReplayStream& stream, const Hook& before) {
  std::vector<std::string> states;
  for (std::uint64_t id = 0; id < kLengths.size() + 1; ++id) {
    if (id < kLengths.size()) QST_EXPECT_OK(stream.Submit(MakePass(id, kLengths[id]), 0));
    if (id == 0) continue;
    std::vector<ConstMatrixView> views;
    for (std::int64_t layer = 0; layer <= kLayers; ++layer) {
      if (before) before(id - 1, layer);
      const auto view = stream.Wait(id - 1, layer);
      if (!view.ok()) {
        ADD_FAILURE() << view.status();
        return states;
      }
      views.push_back(*view);
    }
    // All are read only now: what was given before a loss must still be there.
    for (const ConstMatrixView& view : views) states.push_back(BytesOf(ctx, view));
    stream.Release(id - 1);
  }
  return states;
}

class ReplayStreamTest : public DeviceTest {
 protected:
  std::vector<std::string> Expected() {
    Cluster cluster(ctx_);
    ReplayStream stream(cluster.Start(2), [](const absl::Status& lost) { return lost; });
    return ReadAll(ctx_, stream, nullptr);
  }
};
QST_INSTANTIATE_DEVICE_TEST(ReplayStreamTest);

TEST_P(ReplayStreamTest, AStageLostAtAnyPointChangesNoBit) {
  const std::vector<std::string> expected = Expected();
  ASSERT_EQ(expected.size(), kLengths.size() * (kLayers + 1));
  for (const std::uint64_t pass : {0, 1, 5}) {
    for (std::int64_t layer = 0; layer <= kLayers; layer += 3) {
      for (const int stage : {0, 1}) {
        Cluster cluster(ctx_);
        ReplayStream stream(cluster.Start(2), [&](const absl::Status& lost) {
          EXPECT_THAT(std::string(lost.message()), HasSubstr("stage 1 was lost"));
          return cluster.Start(3);
        });
        const auto states = ReadAll(ctx_, stream, [&](std::uint64_t id, std::int64_t at) {
          if (id == pass && at == layer && cluster.num_started() == 1) cluster.Lose(stage);
        });
        EXPECT_EQ(states, expected) << "stage " << stage << " lost before pass " << pass << ", layer " << layer;
        // Everything may have been on its way already when the last passes were read.
        EXPECT_LE(stream.num_replays(), 1);
        if (pass < 4) {
          EXPECT_EQ(cluster.num_started(), 2);
        }
      }
    }
  }
}

TEST_P(ReplayStreamTest, StagesThatAreLostAgainAndAgainAreReplacedAgainAndAgain) {
  const std::vector<std::string> expected = Expected();
  Cluster cluster(ctx_);
  ReplayStream stream(cluster.Start(2),
                      [&](const absl::Status&) { return cluster.Start(1 + cluster.num_started() % 3); });
  const auto states = ReadAll(ctx_, stream, [&](std::uint64_t id, std::int64_t layer) {
    if (layer == static_cast<std::int64_t>(id) || layer == 5) cluster.Lose(cluster.num_stages() - 1);
  });
  EXPECT_EQ(states, expected);
  EXPECT_GE(stream.num_replays(), 5);
}

TEST_P(ReplayStreamTest, ALossWhileConnectingOrRepeatingIsTriedAgain) {
  const std::vector<std::string> expected = Expected();
  Cluster cluster(ctx_);
  int num_calls = 0;
  ReplayStream stream(cluster.Start(2), [&](const absl::Status& lost) -> absl::StatusOr<std::shared_ptr<LiveStream>> {
    if (++num_calls == 1) return absl::UnavailableError("stage 0 did not come");
    if (num_calls == 2) {
      EXPECT_EQ(lost.message(), "stage 0 did not come");
      auto next = cluster.Start(2);
      cluster.Lose(0, absl::UnavailableError("gone already"));
      return next;
    }
    EXPECT_THAT(std::string(lost.message()), HasSubstr("gone already"));
    return cluster.Start(3);
  });
  const auto states = ReadAll(ctx_, stream, [&](std::uint64_t id, std::int64_t layer) {
    if (id == 1 && layer == 2 && num_calls == 0) cluster.Lose(1);
  });
  EXPECT_EQ(states, expected);
  EXPECT_EQ(num_calls, 3);
}

TEST_P(ReplayStreamTest, ALostStreamIsKeptUntilTheLastPassThatItGaveStatesOfIsReleased) {
  absl::Notification is_lost;
  Cluster cluster(ctx_);
  cluster.prepare = [&](Pipeline& pipeline) {
    pipeline.stage(1).before_pass = [&](const TokenPass& pass) {
      if (pass.id == 1) is_lost.WaitForNotification();
    };
  };
  ReplayStream stream(cluster.Start(2), [&](const absl::Status&) {
    is_lost.Notify();
    cluster.prepare = nullptr;
    return cluster.Start(2);
  });
  QST_ASSERT_OK(stream.Submit(MakePass(0, 8), 0));
  QST_ASSERT_OK(stream.Submit(MakePass(1, 8), 0));
  const ConstMatrixView before = stream.Wait(0, kLayers).value();
  const std::weak_ptr<Pipeline> first = cluster.newest();
  cluster.Lose(1);
  QST_ASSERT_OK(stream.Wait(1, kLayers).status());
  EXPECT_EQ(cluster.num_started(), 2);
  EXPECT_FALSE(first.expired());
  EXPECT_EQ(BytesOf(ctx_, before), BytesOf(ctx_, stream.Wait(0, kLayers).value()));
  stream.Release(0);
  EXPECT_TRUE(first.expired());
  stream.Release(1);
}

TEST_P(ReplayStreamTest, OfThePassThatIsReadOnlyTheRestIsAskedForAgain) {
  const std::vector<std::string> expected = Expected();
  absl::Notification is_lost;
  Cluster cluster(ctx_);
  cluster.prepare = [&](Pipeline& pipeline) {
    pipeline.stage(1).before_pass = [&](const TokenPass&) { is_lost.WaitForNotification(); };
  };
  const std::shared_ptr<LiveStream> first = cluster.Start(2);
  ReplayStream stream(first, [&](const absl::Status&) {
    if (!is_lost.HasBeenNotified()) is_lost.Notify();
    cluster.prepare = nullptr;
    return cluster.Start(3);
  });
  QST_ASSERT_OK(stream.Submit(MakePass(0, kLengths[0]), 0));
  QST_ASSERT_OK(stream.Submit(MakePass(1, kLengths[1]), 0));
  for (std::int64_t layer = 0; layer < 3; ++layer) QST_ASSERT_OK(stream.Wait(0, layer).status());
  cluster.Lose(1);
  // A pass may be read several times: by each of its micro-batches.
  for (int round = 0; round < 2; ++round) {
    for (std::uint64_t id = 0; id < 2; ++id) {
      for (std::int64_t layer = 0; layer <= kLayers; ++layer) {
        const auto view = stream.Wait(id, layer);
        QST_ASSERT_OK(view.status());
        EXPECT_EQ(BytesOf(ctx_, *view), expected[id * (kLayers + 1) + layer]) << "pass " << id << ", layer " << layer;
      }
      if (id == 0 && cluster.num_started() == 2 && round == 0) cluster.Lose(0);
    }
  }
  // What the lost stages had sent of layer 3 may have been read before the loss was seen.
  const auto refused = cluster.newest().lock()->stream().Wait(0, 2);
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("was asked for layers "));
  const auto dropped = first->Wait(1, kLayers);
  EXPECT_THAT(std::string(dropped.status().message()), HasSubstr("which was given up"));
  EXPECT_GE(stream.num_replays(), 1);
  stream.Release(0);
  stream.Release(1);
}

TEST_P(ReplayStreamTest, AStageThatFailsByItselfIsNoLoss) {
  Cluster cluster(ctx_);
  ReplayStream stream(cluster.Start(2), [&](const absl::Status&) { return cluster.Start(2); });
  QST_ASSERT_OK(stream.Submit(MakePass(0, 8), 0));
  cluster.Lose(1, absl::ResourceExhaustedError("out of memory"));
  absl::Status status;
  for (std::int64_t layer = 0; layer <= kLayers && status.ok(); ++layer) status = stream.Wait(0, layer).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  EXPECT_EQ(cluster.num_started(), 1);
}

TEST_P(ReplayStreamTest, AbortAndARefusedReconnectionEndIt) {
  Cluster cluster(ctx_);
  absl::Notification is_reconnecting, is_aborted;
  ReplayStream stream(cluster.Start(2), [&](const absl::Status&) {
    is_reconnecting.Notify();
    is_aborted.WaitForNotification();
    return cluster.Start(2);
  });
  QST_ASSERT_OK(stream.Submit(MakePass(0, 8), 0));
  std::thread aborter([&] {
    is_reconnecting.WaitForNotification();
    stream.Abort(absl::CancelledError("the job was cancelled"));
    is_aborted.Notify();
  });
  cluster.Lose(0);
  cluster.Lose(1);
  EXPECT_EQ(stream.Wait(0, kLayers).status().message(), "the job was cancelled");
  aborter.join();
  EXPECT_FALSE(stream.Submit(MakePass(1, 8), 0).ok());

  Cluster other(ctx_);
  ReplayStream refused(other.Start(2),
                       [](const absl::Status&) { return absl::FailedPreconditionError("no stages any more"); });
  QST_ASSERT_OK(refused.Submit(MakePass(0, 8), 0));
  other.Lose(0);
  other.Lose(1);
  EXPECT_EQ(refused.Wait(0, kLayers).status().message(), "no stages any more");
  EXPECT_EQ(refused.Wait(0, 0).status().message(), "no stages any more");
  EXPECT_EQ(refused.Submit(MakePass(1, 8), 0).message(), "no stages any more");
  refused.Release(0);
}

TEST_P(ReplayStreamTest, PassesOutOfOrderOrWithAKvCacheAreRefused) {
  Cluster cluster(ctx_);
  ReplayStream stream(cluster.Start(1), [&](const absl::Status&) { return cluster.Start(1); });
  EXPECT_EQ(stream.Submit(MakePass(1, 8), 0).code(), absl::StatusCode::kInvalidArgument);
  TokenPass cached = MakePass(0, 8);
  cached.uses_kv_cache = true;
  EXPECT_THAT(std::string(stream.Submit(cached, 0).message()), HasSubstr("KV cache"));
  QST_ASSERT_OK(stream.Submit(MakePass(0, 8), 0));
  EXPECT_EQ(stream.Wait(1, 0).status().code(), absl::StatusCode::kFailedPrecondition);
}

}  // namespace
}  // namespace qst
