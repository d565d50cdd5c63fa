#include "worker/stream/stage_runner.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <deque>
#include <map>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "gtest/gtest.h"
#include "kernels/dtype_convert.h"
#include "proto/support/status_macros.h"
#include "proto/support/status_matchers.h"
#include "worker/stream/live_stream.h"
#include "worker/stream/testing/fake_pipeline.h"
#include "worker/testing/test_device.h"

namespace qst {
namespace {

using testing::HasSubstr;

// All states of some passes of different lengths, as bytes.
std::vector<std::string> RunAll(DeviceType device, int num_stages, Way way, DType wire_dtype) {
  Pipeline pipeline(device, num_stages, way, wire_dtype);
  pipeline.Start();
  const std::vector<int> lengths = {7, 64, 1, 33, 20, 64};
  std::vector<std::string> states;
  for (std::uint64_t id = 0; id < lengths.size() + 1; ++id) {
    if (id < lengths.size()) QST_EXPECT_OK(pipeline.stream().Submit(MakePass(id, lengths[id]), 0));
    if (id == 0) continue;  // one ahead
    for (std::int64_t layer = 0; layer <= kLayers; ++layer) {
      const auto view = pipeline.stream().Wait(id - 1, layer);
      if (!view.ok()) {
        ADD_FAILURE() << view.status();
        return states;
      }
      EXPECT_EQ(view->rows, lengths[id - 1]);
      EXPECT_EQ(view->dtype, wire_dtype == DType::kF32 ? DType::kF32 : DType::kBF16);
      states.push_back(BytesOf(pipeline.side_context(), *view));
    }
    pipeline.stream().Release(id - 1);
  }
  QST_EXPECT_OK(pipeline.stream().Finish());
  QST_EXPECT_OK(pipeline.transport(num_stages).Close(absl::Seconds(10), ""));
  pipeline.Join();
  for (int i = 0; i < num_stages; ++i) QST_EXPECT_OK(pipeline.result(i));
  return states;
}

class StageRunnerTest : public DeviceTest {};
QST_INSTANTIATE_DEVICE_TEST(StageRunnerTest);

TEST_P(StageRunnerTest, StatesAreTheSameBitsForAnyNumberOfStagesAndAnyTransport) {
  for (DType wire_dtype : {DType::kBF16, DType::kF32, DType::kI8, DType::kF8E4M3}) {
    const std::vector<std::string> expected = RunAll(GetParam(), 1, Way::kInProcess, wire_dtype);
    ASSERT_EQ(expected.size(), 6u * (kLayers + 1));
    for (int num_stages : {1, 2, 3}) {
      for (const Way way : Ways(GetParam())) {
        EXPECT_EQ(RunAll(GetParam(), num_stages, way, wire_dtype), expected)
            << num_stages << " stages, " << WayName(way) << ", " << DTypeName(wire_dtype);
      }
    }
  }
}

TEST_P(StageRunnerTest, WireRoundingHappensOnceAndNotOnTheResidual) {
  const std::vector<std::string> exact = RunAll(GetParam(), 2, Way::kInProcess, DType::kF32);
  const std::vector<std::string> rounded = RunAll(GetParam(), 2, Way::kInProcess, DType::kBF16);
  for (std::size_t i = 0; i < exact.size(); ++i) {
    for (std::size_t e = 0; e < exact[i].size() / 4; ++e) {
      float value;
      std::uint16_t bits;
      std::memcpy(&value, exact[i].data() + 4 * e, 4);
      std::memcpy(&bits, rounded[i].data() + 2 * e, 2);
      std::uint32_t wide;
      std::memcpy(&wide, &value, 4);
      wide += 0x7fff + ((wide >> 16) & 1);  // to nearest, ties to even
      ASSERT_EQ(bits, wide >> 16) << "state " << i << ", element " << e;
    }
  }
}

TEST_P(StageRunnerTest, EightBitStatesComeBackNearWhatTheyWereAndTheLastOneAsBF16) {
  const std::vector<std::string> exact = RunAll(GetParam(), 2, Way::kInProcess, DType::kF32);
  const std::vector<std::string> narrow = RunAll(GetParam(), 2, Way::kInProcess, DType::kBF16);
  for (const DType wire_dtype : {DType::kI8, DType::kF8E4M3}) {
    const std::vector<std::string> states = RunAll(GetParam(), 2, Way::kGloo, wire_dtype);
    ASSERT_EQ(states.size(), exact.size());
    int num_changed = 0;
    for (std::size_t i = 0; i < states.size(); ++i) {
      ASSERT_EQ(states[i].size(), exact[i].size() / 2);
      if (i % (kLayers + 1) == kLayers) {
        EXPECT_EQ(states[i], narrow[i]) << "state " << i;
      }
      num_changed += states[i] != narrow[i];
      for (std::size_t row = 0; row < states[i].size() / 2 / kWidth; ++row) {
        float values[kWidth];
        std::memcpy(values, exact[i].data() + 4 * kWidth * row, sizeof(values));
        float absmax = 0.0f;
        for (const float value : values) absmax = std::max(absmax, std::abs(value));
        for (std::int64_t c = 0; c < kWidth; ++c) {
          std::uint16_t bits;
          std::memcpy(&bits, states[i].data() + 2 * (kWidth * row + c), 2);
          // A sixteenth is half a step of the coarsest numbers.
          ASSERT_NEAR(BF16ToF32(bits), values[c], absmax / 15.0f) << "state " << i << ", row " << row;
        }
      }
    }
    EXPECT_GT(num_changed, 20);
  }
}

TEST_P(StageRunnerTest, OnlyTheLayersAskedForAreSent) {
  Pipeline pipeline(GetParam(), 2, Way::kInProcess);
  pipeline.Start();
  QST_ASSERT_OK(pipeline.stream().Submit(MakePass(0, 5), kLayers));
  QST_EXPECT_OK(pipeline.stream().Wait(0, kLayers));
  EXPECT_THAT(pipeline.stream().Wait(0, kLayers - 1), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(pipeline.stream().Wait(1, kLayers), StatusIs(absl::StatusCode::kFailedPrecondition));
}

TEST_P(StageRunnerTest, CreditsBoundWhatIsInFlight) {
  Pipeline pipeline(GetParam(), 1, Way::kInProcess);
  pipeline.Start();
  QST_ASSERT_OK(pipeline.stream().Submit(MakePass(0, 5), 0));
  QST_ASSERT_OK(pipeline.stream().Submit(MakePass(1, 5), 0));
  EXPECT_THAT(pipeline.stream().Submit(MakePass(2, 5), 0), StatusIs(absl::StatusCode::kFailedPrecondition));
  QST_ASSERT_OK(pipeline.stream().Wait(0, kLayers));
  pipeline.stream().Release(0);
  QST_EXPECT_OK(pipeline.stream().Submit(MakePass(2, 5), 0));
}

TEST_P(StageRunnerTest, StagesRunAheadOfTheSide) {
  Pipeline pipeline(GetParam(), 2, Way::kGloo);
  absl::Notification second_done;
  pipeline.stage(1).before_pass = [&](const TokenPass& pass) {
    if (pass.id == 1) second_done.Notify();
  };
  pipeline.Start();
  QST_ASSERT_OK(pipeline.stream().Submit(MakePass(0, 5), 0));
  QST_ASSERT_OK(pipeline.stream().Submit(MakePass(1, 5), 0));
  // The side has waited for nothing yet.
  EXPECT_TRUE(second_done.WaitForNotificationWithTimeout(absl::Seconds(20)));
}

TEST_P(StageRunnerTest, PassesReleasedUnreadDoNotBlockLaterOnes) {
  for (const Way way : Ways(GetParam())) {
    Pipeline pipeline(GetParam(), 2, way);
    pipeline.Start();
    for (std::uint64_t id = 0; id < 10; ++id) {
      QST_ASSERT_OK(pipeline.stream().Submit(MakePass(id, 9), 0));
      if (id < 9) pipeline.stream().Release(id);
    }
    QST_EXPECT_OK(pipeline.stream().Wait(9, kLayers));
  }
}

TEST_P(StageRunnerTest, StatesThatHaveNotLeftHoldUpTheStage) {
  Pipeline pipeline(GetParam(), 1, Way::kInProcess, DType::kBF16, /*max_states_under_way=*/2);
  pipeline.Start();
  Transport& side = pipeline.transport(1);
  // What LiveStream does, but states are let go one by one.
  const TokenPass pass = MakePass(0, 5);
  PassHeader header;
  header.num_tokens = 5;
  header.num_sequences = 2;
  header.hidden_size = kWidth;
  const auto pool = BufferPool::Create();
  SharedBuffer head = pool->Get(kHeaderBytes).value();
  SharedBuffer tokens = pool->Get(TokensBytes(5, 2)).value();
  EncodeHeader(header, head->data());
  EncodeTokens(pass, tokens->data());
  QST_ASSERT_OK(side.Send(0, MakeTag(FrameKind::kHeader, 0), std::move(head)));
  QST_ASSERT_OK(side.Send(0, MakeTag(FrameKind::kTokens, 0), std::move(tokens)));
  std::deque<SharedBuffer> held;
  for (std::int64_t layer = 0; layer <= kLayers; ++layer) {
    auto pending = side.Receive(0, MakeTag(FrameKind::kHiddenStates, 0, layer), 5 * kWidth * 2);
    QST_ASSERT_OK(pending);
    if (held.size() == 2) {
      // Two are held here, so the next one is not even begun.
      EXPECT_THAT((*pending)->Wait(absl::Milliseconds(20)), StatusIs(absl::StatusCode::kDeadlineExceeded));
      held.pop_front();
    }
    auto states = (*pending)->Wait(absl::Seconds(20));
    QST_ASSERT_OK(states);
    held.push_back(*std::move(states));
  }
  // One that waits for room learns of a failure.
  SharedBuffer next_head = pool->Get(kHeaderBytes).value();
  SharedBuffer next_tokens = pool->Get(TokensBytes(5, 2)).value();
  header.pass_id = 1;
  EncodeHeader(header, next_head->data());
  EncodeTokens(pass, next_tokens->data());
  QST_ASSERT_OK(side.Send(0, MakeTag(FrameKind::kHeader, 1), std::move(next_head)));
  QST_ASSERT_OK(side.Send(0, MakeTag(FrameKind::kTokens, 1), std::move(next_tokens)));
  side.Abort(absl::CancelledError("enough"));
  pipeline.Join();
  EXPECT_THAT(pipeline.result(0), StatusIs(absl::StatusCode::kCancelled, HasSubstr("enough")));
}

TEST_P(StageRunnerTest, AbortInMidPassWakesSideAndStages) {
  for (const Way way : Ways(GetParam())) {
    Pipeline pipeline(GetParam(), 2, way);
    absl::Notification inside;
    absl::Notification go_on;
    pipeline.stage(1).before_pass = [&](const TokenPass&) {
      inside.Notify();
      go_on.WaitForNotification();
    };
    pipeline.Start();
    QST_ASSERT_OK(pipeline.stream().Submit(MakePass(0, 5), 0));
    std::thread aborter([&] {
      inside.WaitForNotification();
      pipeline.stream().Abort(absl::CancelledError("cancelled by the user"));
      go_on.Notify();
    });
    EXPECT_THAT(pipeline.stream().Wait(0, kLayers), StatusIs(absl::StatusCode::kCancelled));
    aborter.join();
    pipeline.Join();
    for (int i : {0, 1}) {
      EXPECT_THAT(pipeline.result(i),
                  StatusIs(absl::StatusCode::kCancelled, HasSubstr("side network on w9: cancelled")));
      EXPECT_TRUE(IsPeerReported(pipeline.result(i)));
    }
  }
}

TEST_P(StageRunnerTest, FailureOfAStageReachesEveryoneWithItsName) {
  for (const Way way : Ways(GetParam())) {
    Pipeline pipeline(GetParam(), 3, way);
    pipeline.stage(1).failing_layer = 4;
    pipeline.stage(1).failing_pass = 1;
    pipeline.Start();
    QST_ASSERT_OK(pipeline.stream().Submit(MakePass(0, 5), 0));
    // The states of pass 0 may or may not be here before the failure of pass 1.
    const absl::Status submitted = pipeline.stream().Submit(MakePass(1, 5), 0);
    absl::Status status = submitted;
    for (std::uint64_t id : {0, 1}) {
      if (status.ok()) status = pipeline.stream().Wait(id, kLayers).status();
    }
    EXPECT_THAT(status,
                StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("stage 1 on w1: pass 1: out of memory")));
    pipeline.Join();
    EXPECT_THAT(pipeline.result(1),
                StatusIs(absl::StatusCode::kResourceExhausted, testing::Eq("pass 1: out of memory")));
    EXPECT_FALSE(IsPeerReported(pipeline.result(1)));
    EXPECT_THAT(pipeline.result(0), StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("stage 1 on w1")));
    EXPECT_THAT(pipeline.result(2), StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("stage 1 on w1")));
  }
}

TEST_P(StageRunnerTest, HeadersThatBreakThePlanEndTheStage) {
  Pipeline pipeline(GetParam(), 1, Way::kInProcess);
  pipeline.Start();
  PassHeader header;
  header.num_tokens = 1000000;
  header.num_sequences = 1;
  header.hidden_size = kWidth;
  SharedBuffer head = BufferPool::Create()->Get(kHeaderBytes).value();
  EncodeHeader(header, head->data());
  QST_ASSERT_OK(pipeline.transport(1).Send(0, MakeTag(FrameKind::kHeader, 0), std::move(head)));
  pipeline.Join();
  EXPECT_THAT(pipeline.result(0),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("1000000 tokens, allowed are 1 to 64")));
}

TEST_P(StageRunnerTest, BadPassesAreRefusedBeforeAnythingIsSent) {
  Pipeline pipeline(GetParam(), 1, Way::kInProcess);
  LiveStream& stream = pipeline.stream();
  EXPECT_THAT(stream.Submit(MakePass(1, 5), 0),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("next one is 0")));
  EXPECT_THAT(stream.Submit(MakePass(0, 65), 0), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("65 tokens")));
  EXPECT_THAT(stream.Submit(MakePass(0, 5), kLayers + 1), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(stream.Submit(TokenPass{}, 0), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("no tokens")));
}

TEST(LiveStreamTest, StateBytesCountWhatIsDecodedBesides) {
  LiveStreamOptions options;
  options.hidden_size = 8;
  options.max_pass_tokens = 4;
  options.max_passes_in_flight = 3;
  options.wire_dtype = DType::kF32;
  EXPECT_EQ(LiveStream::StateBytes(options, 1, 5), 3 * 5 * 4 * 8 * 4);
  options.wire_dtype = DType::kI8;
  // Four layers with scales, and decoded once; the last one in bf16.
  EXPECT_EQ(LiveStream::StateBytes(options, 1, 5), 3 * (4 * (16 + 32) + 64) + 4 * 64);
}

TEST(LiveStreamTest, StagesMustCoverTheLayersInOrder) {
  const auto hub = InprocHub::Create(Names(2));
  const auto transport = hub->Endpoint(2);
  LiveStreamOptions options;
  options.hidden_size = 8;
  options.max_pass_tokens = 8;
  options.stages = {{0, 3}, {4, 2}};
  EXPECT_THAT(LiveStream::Create(*transport, options), StatusIs(absl::StatusCode::kInvalidArgument));
  options.stages = {{0, 3}};
  EXPECT_THAT(LiveStream::Create(*transport, options), StatusIs(absl::StatusCode::kInvalidArgument));
  options.stages = {{0, 3}, {3, 2}};
  QST_EXPECT_OK(LiveStream::Create(*transport, options));
  options.wire_dtype = DType::kF16;
  EXPECT_THAT(LiveStream::Create(*transport, options), StatusIs(absl::StatusCode::kUnimplemented));
}

}  // namespace
}  // namespace qst
