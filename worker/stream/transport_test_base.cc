#include "worker/stream/transport_test_base.h"

#include <cstring>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "kernels/device_memory.h"
#include "kernels/testing/op_test_context.h"
#include "proto/support/status_matchers.h"

namespace qst {

using testing::HasSubstr;

constexpr absl::Duration kLong = absl::Seconds(30);

std::vector<std::string> TestNames(int world_size) {
  std::vector<std::string> names;
  for (int i = 0; i < world_size; ++i) names.push_back(absl::StrCat("rank ", i, " on test"));
  return names;
}

SharedBuffer TransportTest::Bytes(const std::string& text) {
  SharedBuffer buffer = pool_->Get(static_cast<std::int64_t>(text.size())).value();
  std::memcpy(buffer->data(), text.data(), text.size());
  return buffer;
}

TEST_P(TransportTest, MessagesOfOneTagArriveInTheOrderSent) {
  World world = Make(2);
  auto first = world[1]->Receive(0, 7, 3).value();
  QST_ASSERT_OK(world[0]->Send(1, 7, Bytes("one")));
  QST_ASSERT_OK(world[0]->Send(1, 7, Bytes("two")));
  auto second = world[1]->Receive(0, 7, 3).value();
  // Waited for in the other order: matching goes by posting.
  const auto two = second->Wait(kLong);
  QST_ASSERT_OK(two);
  EXPECT_EQ(Text(*two), "two");
  const auto one = first->Wait(kLong);
  QST_ASSERT_OK(one);
  EXPECT_EQ(Text(*one), "one");
}

TEST_P(TransportTest, TagsAreIndependent) {
  World world = Make(2);
  QST_ASSERT_OK(world[0]->Send(1, 1, Bytes("a")));
  QST_ASSERT_OK(world[0]->Send(1, 2, Bytes("bb")));
  QST_ASSERT_OK(world[0]->Send(1, 3, Bytes("")));
  for (Tag tag : {3, 2, 1}) {
    const std::int64_t size = tag == 3 ? 0 : static_cast<std::int64_t>(tag);
    const auto message = world[1]->Receive(0, tag, size).value()->Wait(kLong);
    QST_ASSERT_OK(message);
    EXPECT_EQ(Text(*message), tag == 1 ? "a" : tag == 2 ? "bb" : "");
  }
}

TEST_P(TransportTest, EveryPairTalksBothWaysAtOnce) {
  World world = Make(3);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < 3; ++rank) {
    threads.emplace_back([this, &world, rank] {
      Transport& own = *world[rank];
      for (int round = 0; round < 20; ++round) {
        std::vector<std::unique_ptr<PendingReceive>> pending;
        for (int peer = 0; peer < 3; ++peer) {
          if (peer == rank) continue;
          pending.push_back(own.Receive(peer, round, 2).value());
          QST_EXPECT_OK(own.Send(peer, round, Bytes(absl::StrCat(rank, peer))));
        }
        for (int peer = 0, i = 0; peer < 3; ++peer) {
          if (peer == rank) continue;
          const auto message = pending[i++]->Wait(kLong);
          QST_ASSERT_OK(message);
          EXPECT_EQ(Text(*message), absl::StrCat(peer, rank));
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST_P(TransportTest, LargeMessagesCrossEachOther) {
  World world = Make(2);
  constexpr std::int64_t kSize = 64 << 20;
  std::vector<std::thread> threads;
  for (int rank = 0; rank < 2; ++rank) {
    threads.emplace_back([this, &world, rank] {
      auto pending = world[rank]->Receive(1 - rank, 5, kSize).value();
      SharedBuffer buffer = pool_->Get(kSize).value();
      for (std::int64_t i = 0; i < kSize; i += 4096) buffer->data()[i] = static_cast<std::uint8_t>(i / 4096 + rank);
      QST_ASSERT_OK(world[rank]->Send(1 - rank, 5, std::move(buffer)));
      const auto message = pending->Wait(kLong);
      QST_ASSERT_OK(message);
      std::int64_t num_wrong = 0;
      for (std::int64_t i = 0; i < kSize; i += 4096) {
        num_wrong += (*message)->data()[i] != static_cast<std::uint8_t>(i / 4096 + 1 - rank);
      }
      EXPECT_EQ(num_wrong, 0);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST_P(TransportTest, InProcessTheReceiverGetsTheSendersBuffer) {
  World world = Make(2);
  SharedBuffer buffer = Bytes("same");
  const std::uint8_t* const address = buffer->data();
  QST_ASSERT_OK(world[0]->Send(1, 1, std::move(buffer)));
  const auto message = world[1]->Receive(0, 1, 4).value()->Wait(kLong);
  QST_ASSERT_OK(message);
  EXPECT_EQ((*message)->data() == address, GetParam().hands_over_buffers);
}

TEST_P(TransportTest, DeviceBuffersGoToPeersThatTakeThemAndToNoOther) {
  World world = Make(2);
  EXPECT_FALSE(world[0]->CarriesDeviceMemory(2));
  EXPECT_EQ(world[0]->CarriesDeviceMemory(1), GetParam().carries_device_memory);
  const auto pending = world[1]->ReceiveOnDevice(0, 1, 256);
  EXPECT_THAT(pending.status(),
              StatusIs(GetParam().carries_device_memory ? absl::StatusCode::kOk : absl::StatusCode::kUnimplemented));
  if (TestCuda::StreamOrNull() == nullptr) GTEST_SKIP() << "no GPU, or a build without the CUDA backend";

  const OpContext ctx{DeviceType::kCuda, nullptr, CpuIsa::kAuto, TestCuda::StreamOrNull()};
  const std::vector<std::uint8_t> sent(256, 7);
  std::vector<std::uint8_t> received(256);
  SharedBuffer buffer = BufferPool::Create(ctx)->Get(256).value();
  const std::uint8_t* const address = buffer->data();
  QST_ASSERT_OK(buffer->BeginUse(ctx));
  QST_ASSERT_OK(Upload(ctx, sent.data(), 256, buffer->data()));
  QST_ASSERT_OK(buffer->EndUse(ctx));
  const absl::Status status = world[0]->Send(1, 1, std::move(buffer));
  if (!GetParam().carries_device_memory) {
    EXPECT_THAT(status, StatusIs(absl::StatusCode::kUnimplemented, HasSubstr("rank 1 travel from host memory")));
    QST_EXPECT_OK(world[0]->status());
    return;
  }
  QST_ASSERT_OK(status);
  const auto message = (*pending)->Wait(kLong);
  QST_ASSERT_OK(message);
  EXPECT_TRUE((*message)->is_on_device());
  EXPECT_EQ((*message)->data() == address, GetParam().hands_over_buffers);
  QST_ASSERT_OK((*message)->BeginUse(ctx));
  QST_ASSERT_OK(Download(ctx, (*message)->data(), 256, received.data()));
  QST_ASSERT_OK((*message)->EndUse(ctx));
  EXPECT_EQ(received, sent);
}

TEST_P(TransportTest, WaitThatTimesOutLeavesTheReceivePosted) {
  World world = Make(2);
  auto pending = world[1]->Receive(0, 1, 5).value();
  EXPECT_THAT(pending->Wait(absl::Milliseconds(20)),
              StatusIs(absl::StatusCode::kDeadlineExceeded, HasSubstr("rank 0 on test")));
  EXPECT_THAT(pending->Wait(absl::ZeroDuration()), StatusIs(absl::StatusCode::kDeadlineExceeded));
  QST_ASSERT_OK(world[0]->Send(1, 1, Bytes("later")));
  const auto message = pending->Wait(kLong);
  QST_ASSERT_OK(message);
  EXPECT_EQ(Text(*message), "later");
  QST_EXPECT_OK(world[1]->status());
}

TEST_P(TransportTest, AbortWakesWhoeverWaitsWithItsReason) {
  World world = Make(2);
  auto pending = world[1]->Receive(0, 1, 8).value();
  std::thread aborter([&world] { world[1]->Abort(absl::CancelledError("job cancelled")); });
  EXPECT_THAT(pending->Wait(absl::InfiniteDuration()),
              StatusIs(absl::StatusCode::kCancelled, HasSubstr("job cancelled")));
  aborter.join();
  EXPECT_THAT(world[1]->Send(0, 2, Bytes("x")), StatusIs(absl::StatusCode::kCancelled));
  EXPECT_THAT(world[1]->Receive(0, 2, 1), StatusIs(absl::StatusCode::kCancelled));
  EXPECT_FALSE(IsPeerReported(world[1]->status()));
}

TEST_P(TransportTest, PeersLearnTheReasonOfAnAbort) {
  World world = Make(3);
  // Rank 1 waits for rank 2, which is well: the communicator fails as a whole.
  auto pending = world[1]->Receive(2, 1, 8).value();
  const absl::Time start = absl::Now();
  world[0]->Abort(absl::InvalidArgumentError("token 99 is outside the vocabulary"));
  const auto result = pending->Wait(kLong);
  EXPECT_THAT(result, StatusIs(absl::StatusCode::kInvalidArgument,
                               HasSubstr("rank 0 on test: token 99 is outside the vocabulary")));
  EXPECT_TRUE(IsPeerReported(result.status()));
  EXPECT_LT(absl::Now() - start, absl::Seconds(5));
}

TEST_P(TransportTest, PeerThatGoesWithoutGoodbyeIsNamed) {
  World world = Make(2);
  auto pending = world[1]->Receive(0, 1, 8).value();
  const absl::Time start = absl::Now();
  std::thread killer([&world] { world[0].reset(); });
  const auto result = pending->Wait(kLong);
  EXPECT_THAT(result, StatusIs(absl::StatusCode::kUnavailable, HasSubstr("rank 0 on test")));
  EXPECT_LT(absl::Now() - start, absl::Seconds(5));
  killer.join();
}

TEST_P(TransportTest, ListenerHearsOfAPeersFailureOnce) {
  World world = Make(2);
  absl::Notification heard;
  int num_calls = 0;
  world[1]->OnFailure([&](const absl::Status& status) {
    EXPECT_THAT(status, StatusIs(absl::StatusCode::kDataLoss));
    ++num_calls;
    heard.Notify();
  });
  world[0]->Abort(absl::DataLossError("first"));
  ASSERT_TRUE(heard.WaitForNotificationWithTimeout(kLong));
  world[1]->Abort(absl::InternalError("second"));
  EXPECT_THAT(world[1]->status(), StatusIs(absl::StatusCode::kDataLoss, HasSubstr("first")));
  EXPECT_EQ(num_calls, 1);
}

TEST_P(TransportTest, MessagesSentBeforeCloseArrive) {
  World world = Make(2);
  auto pending = world[1]->Receive(0, 1, 3).value();
  QST_ASSERT_OK(world[0]->Send(1, 1, Bytes("end")));
  std::thread closer([&world] {
    QST_EXPECT_OK(world[0]->Close(kLong, "all said"));
    world[0].reset();
  });
  const auto message = pending->Wait(kLong);
  QST_ASSERT_OK(message);
  EXPECT_EQ(Text(*message), "end");
  QST_EXPECT_OK(world[1]->Close(kLong, ""));
  closer.join();
  QST_EXPECT_OK(world[1]->status());
  EXPECT_EQ(world[1]->PeerNotes(), (std::vector<std::string>{"all said", ""}));
}

TEST_P(TransportTest, CloseDoesNotWaitForeverForASilentPeer) {
  World world = Make(2);
  EXPECT_THAT(world[0]->Close(absl::Milliseconds(50), ""),
              StatusIs(absl::StatusCode::kDeadlineExceeded, HasSubstr("rank 1 on test")));
  EXPECT_THAT(world[0]->Send(1, 1, Bytes("x")), StatusIs(absl::StatusCode::kFailedPrecondition));
}

TEST_P(TransportTest, DroppedReceivesDoNotDisturbOthers) {
  World world = Make(2);
  world[1]->Receive(0, 1, 1).value().reset();
  auto kept = world[1]->Receive(0, 1, 1).value();
  QST_ASSERT_OK(world[0]->Send(1, 1, Bytes("a")));
  QST_ASSERT_OK(world[0]->Send(1, 1, Bytes("b")));
  const auto message = kept->Wait(kLong);
  QST_ASSERT_OK(message);
  EXPECT_EQ(Text(*message), "b");
}

TEST_P(TransportTest, RanksOutsideTheWorldAreRefused) {
  World world = Make(2);
  EXPECT_THAT(world[0]->Send(2, 1, Bytes("x")), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(world[0]->Receive(-1, 1, 1), StatusIs(absl::StatusCode::kInvalidArgument));
}

}  // namespace qst
