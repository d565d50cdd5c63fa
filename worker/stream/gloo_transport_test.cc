#include "worker/stream/gloo_transport.h"

#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <thread>

#include "absl/time/clock.h"
#include "proto/support/status_matchers.h"
#include "worker/stream/composite_transport.h"
#include "worker/stream/inproc_transport.h"
#include "worker/stream/pipe_key_value_store.h"
#include "worker/stream/transport_test_base.h"

namespace qst {
namespace {

using testing::HasSubstr;

World MakeGlooWorld(int world_size) {
  InMemoryKeyValueStore store;
  World world(world_size);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < world_size; ++rank) {
    threads.emplace_back([&, rank] {
      GlooOptions options;
      options.rank = rank;
      options.names = TestNames(world_size);
      for (int peer = 0; peer < world_size; ++peer) {
        if (peer != rank) options.peers.push_back(peer);
      }
      auto transport = GlooTransport::Create(options).value();
      QST_EXPECT_OK(transport->Connect(store));
      world[rank] = std::move(transport);
    });
  }
  for (std::thread& thread : threads) thread.join();
  return world;
}

// Ranks 0 and 1 in one "process", the others each in their own.
World MakeCompositeWorld(int world_size) {
  InMemoryKeyValueStore store;
  const auto hub = InprocHub::Create(TestNames(world_size));
  World world(world_size);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < world_size; ++rank) {
    threads.emplace_back([&, rank] {
      GlooOptions options;
      options.rank = rank;
      options.names = TestNames(world_size);
      std::vector<bool> is_local(world_size, false);
      for (int peer = 0; peer < world_size; ++peer) {
        if (peer == rank) continue;
        is_local[peer] = rank < 2 && peer < 2;
        if (!is_local[peer]) options.peers.push_back(peer);
      }
      auto transport = GlooTransport::Create(options).value();
      QST_EXPECT_OK(transport->Connect(store));
      if (rank < 2) {
        world[rank] = MakeCompositeTransport(hub->Endpoint(rank), std::move(transport), is_local);
      } else {
        world[rank] = std::move(transport);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  return world;
}

INSTANTIATE_TEST_SUITE_P(Gloo, TransportTest, testing::Values(TransportTestParam{"gloo", MakeGlooWorld, false, false}));
INSTANTIATE_TEST_SUITE_P(Composite, TransportTest,
                         testing::Values(TransportTestParam{"composite", MakeCompositeWorld, true, true}));

GlooOptions TwoRanks(int rank) {
  GlooOptions options;
  options.rank = rank;
  options.names = TestNames(2);
  options.peers = {1 - rank};
  return options;
}

TEST(GlooTransportTest, PeerThatNeverComesIsNamedAfterTheTimeout) {
  InMemoryKeyValueStore store;
  GlooOptions options = TwoRanks(0);
  options.connect_timeout = absl::Milliseconds(100);
  auto transport = GlooTransport::Create(options).value();
  EXPECT_THAT(transport->Connect(store),
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr("rank 1 on test did not appear")));
}

TEST(GlooTransportTest, AbortEndsTheWaitForPeers) {
  InMemoryKeyValueStore store;
  auto transport = GlooTransport::Create(TwoRanks(0)).value();
  std::thread aborter([&] {
    // The address is set just before the waiting begins.
    QST_EXPECT_OK(store.Get("data/0-1", absl::Seconds(10)));
    transport->Abort(absl::CancelledError("released"));
  });
  EXPECT_THAT(transport->Connect(store), StatusIs(absl::StatusCode::kCancelled, HasSubstr("released")));
  aborter.join();
}

TEST(GlooTransportTest, AbortEndsTheWaitForAConnection) {
  InMemoryKeyValueStore store;
  auto transport = GlooTransport::Create(TwoRanks(0)).value();
  // A peer that publishes its address and then does nothing more.
  auto silent = GlooTransport::Create(TwoRanks(1)).value();
  std::thread peer([&] {
    QST_EXPECT_OK(store.Get("data/0-1", absl::Seconds(10)));
    transport->Abort(absl::CancelledError("released"));
  });
  EXPECT_THAT(transport->Connect(store), StatusIs(absl::StatusCode::kCancelled));
  peer.join();
}

TEST(GlooTransportTest, AddressOfAnotherMachineIsRefused) {
  GlooOptions options = TwoRanks(0);
  options.host = "192.0.2.1";
  EXPECT_THAT(GlooTransport::Create(options), StatusIs(absl::StatusCode::kUnavailable, HasSubstr("192.0.2.1")));
  options.interface = "no-such-interface";
  EXPECT_THAT(GlooTransport::Create(options), StatusIs(absl::StatusCode::kUnavailable, HasSubstr("no-such-interface")));
}

// A process that is killed says no goodbye, perhaps in the middle of a message: whatever waits must end.
TEST(GlooTransportTest, KilledProcessIsNoticedWithinSecondsEvenInMidMessage) {
  int to_child[2];
  int to_parent[2];
  ASSERT_EQ(pipe(to_child), 0);
  ASSERT_EQ(pipe(to_parent), 0);
  constexpr std::int64_t kSize = 256 << 20;
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    PipeKeyValueStore store(to_child[0], to_parent[1]);
    auto transport = GlooTransport::Create(TwoRanks(0)).value();
    if (!transport->Connect(store).ok()) _exit(1);
    auto pool = BufferPool::Create();
    auto wait_to_start = transport->Receive(1, 1, 1).value()->Wait(absl::Seconds(30));
    // A message that takes a while, and none of what the parent sends is received.
    SharedBuffer buffer = pool->Get(kSize).value();
    if (!transport->Send(1, 2, buffer).ok()) _exit(1);
    raise(SIGKILL);
  }
  PipeKeyValueStore store(to_parent[0], to_child[1]);
  auto transport = GlooTransport::Create(TwoRanks(1)).value();
  QST_ASSERT_OK(transport->Connect(store));
  auto pool = BufferPool::Create();
  auto half = transport->Receive(0, 2, kSize).value();
  auto never = transport->Receive(0, 3, 8).value();
  QST_ASSERT_OK(transport->Send(0, 4, pool->Get(kSize).value()));
  QST_ASSERT_OK(transport->Send(0, 1, pool->Get(1).value()));
  int wait_status = 0;
  ASSERT_EQ(waitpid(child, &wait_status, 0), child);
  ASSERT_TRUE(WIFSIGNALED(wait_status));
  const absl::Time start = absl::Now();
  EXPECT_THAT(never->Wait(absl::Seconds(60)), StatusIs(absl::StatusCode::kUnavailable, HasSubstr("rank 0 on test")));
  EXPECT_THAT(half->Wait(absl::Seconds(60)), StatusIs(absl::StatusCode::kUnavailable, HasSubstr("rank 0 on test")));
  EXPECT_LT(absl::Now() - start, absl::Seconds(5));
  transport.reset();
  EXPECT_LT(absl::Now() - start, absl::Seconds(8));
  for (int fd : {to_child[0], to_child[1], to_parent[0], to_parent[1]}) close(fd);
}

}  // namespace
}  // namespace qst
