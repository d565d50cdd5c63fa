#include "worker/stream/nccl_transport.h"

#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "kernels/device_memory.h"
#include "kernels/testing/op_test_context.h"
#include "proto/support/status_matchers.h"
#include "worker/stream/composite_transport.h"
#include "worker/stream/frame.h"
#include "worker/stream/gloo_transport.h"
#include "worker/stream/inproc_transport.h"
#include "worker/stream/pipe_key_value_store.h"
#include "worker/stream/transport_test_base.h"

namespace qst {
namespace {

using testing::HasSubstr;

constexpr absl::Duration kLong = absl::Seconds(30);
// Within which everyone knows that a peer is gone.
constexpr absl::Duration kNoticed = absl::Seconds(15);

bool HasGpu() { return TestCuda::StreamOrNull() != nullptr; }

// Ranks that are threads share a GPU, which NCCL refuses and the shim allows.
std::string WhyNoThreads() {
  if (!HasGpu()) return "no GPU, or a build without the CUDA backend";
  const std::string& name = cuda::DeviceOf(*TestCuda::StreamOrNull()).name();
  return absl::StrContains(name, "shim") ? "" : "NCCL wants a GPU for each rank of a process";
}

// A context for one rank. Never destroyed: a transport may be last to use it.
OpContext NewContext() {
  static auto* const streams = new std::vector<cuda::StreamPtr>;
  static absl::Mutex mutex;
  OpContext ctx;
  ctx.device = DeviceType::kCuda;
  absl::MutexLock lock(&mutex);
  streams->push_back(cuda::DeviceOf(*TestCuda::StreamOrNull()).NewTransferStream().value());
  ctx.stream = streams->back().get();
  return ctx;
}

OpContext TestContext() { return OpContext{DeviceType::kCuda, nullptr, CpuIsa::kAuto, TestCuda::StreamOrNull()}; }

std::vector<NcclEdge> AllEdges(int world_size) {
  std::vector<NcclEdge> edges;
  for (int from = 0; from < world_size; ++from) {
    for (int to = 0; to < world_size; ++to) {
      if (from != to) edges.push_back({from, to});
    }
  }
  return edges;
}

NcclOptions Options(int world_size, std::vector<NcclEdge> edges) {
  NcclOptions options;
  options.names = TestNames(world_size);
  options.edges = std::move(edges);
  options.ctx = NewContext();
  return options;
}

std::unique_ptr<GlooTransport> ConnectGloo(int rank, int world_size, const std::vector<int>& peers,
                                           KeyValueStore& store) {
  GlooOptions options;
  options.rank = rank;
  options.names = TestNames(world_size);
  options.peers = peers;
  auto gloo = GlooTransport::Create(options).value();
  QST_EXPECT_OK(gloo->Connect(store));
  return gloo;
}

// `control[rank]` with NCCL on top, each connected on a thread of its own.
World Connect(std::vector<std::unique_ptr<Transport>> control, const std::vector<NcclEdge>& edges) {
  const int size = static_cast<int>(control.size());
  World world(size);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < size; ++rank) {
    threads.emplace_back([&, rank] {
      auto transport = NcclTransport::Create(std::move(control[rank]), Options(size, edges)).value();
      QST_EXPECT_OK(transport->Connect());
      world[rank] = std::move(transport);
    });
  }
  for (std::thread& thread : threads) thread.join();
  return world;
}

std::vector<std::unique_ptr<Transport>> InprocControl(int world_size) {
  const auto hub = InprocHub::Create(TestNames(world_size));
  std::vector<std::unique_ptr<Transport>> control;
  for (int rank = 0; rank < world_size; ++rank) control.push_back(hub->Endpoint(rank));
  return control;
}

World MakeWorld(int world_size) {
  InMemoryKeyValueStore store;
  std::vector<std::unique_ptr<Transport>> control(world_size);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < world_size; ++rank) {
    threads.emplace_back([&, rank] {
      std::vector<int> peers;
      for (int peer = 0; peer < world_size; ++peer) {
        if (peer != rank) peers.push_back(peer);
      }
      control[rank] = ConnectGloo(rank, world_size, peers, store);
    });
  }
  for (std::thread& thread : threads) thread.join();
  return Connect(std::move(control), AllEdges(world_size));
}

// Ranks 1 and 2 in one "process", the others each in their own: NCCL leads from rank 0 to rank 1.
World MakeCompositeWorld(int world_size) {
  InMemoryKeyValueStore store;
  const auto hub = InprocHub::Create(TestNames(world_size));
  World world(world_size);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < world_size; ++rank) {
    threads.emplace_back([&, rank] {
      std::vector<bool> is_local(world_size, false);
      std::vector<int> peers;
      std::vector<NcclEdge> edges;
      for (int peer = 0; peer < world_size; ++peer) {
        if (peer == rank) continue;
        is_local[peer] = rank + peer == 3;
        if (is_local[peer]) continue;
        peers.push_back(peer);
        edges.push_back({rank, peer});
        edges.push_back({peer, rank});
      }
      auto nccl =
          NcclTransport::Create(ConnectGloo(rank, world_size, peers, store), Options(world_size, edges)).value();
      QST_EXPECT_OK(nccl->Connect());
      if (rank == 1 || rank == 2) {
        world[rank] = MakeCompositeTransport(hub->Endpoint(rank), std::move(nccl), is_local);
      } else {
        world[rank] = std::move(nccl);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  return world;
}

INSTANTIATE_TEST_SUITE_P(Nccl, TransportTest,
                         testing::Values(TransportTestParam{"nccl", MakeWorld, false, true, WhyNoThreads}));
INSTANTIATE_TEST_SUITE_P(NcclComposite, TransportTest,
                         testing::Values(TransportTestParam{"composite", MakeCompositeWorld, false, true,
                                                            WhyNoThreads}));

// Messages of a GPU's memory, with each way in which the shim defers work. Ranks are threads.
class NcclTransportTest : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    if (const std::string why_not = WhyNoThreads(); !why_not.empty()) GTEST_SKIP() << why_not;
    setenv("QST_CUDA_SHIM_ASYNC", GetParam().c_str(), 1);
    pool_ = BufferPool::Create(TestContext());
  }
  void TearDown() override { unsetenv("QST_CUDA_SHIM_ASYNC"); }

  World Make(int world_size) { return Connect(InprocControl(world_size), AllEdges(world_size)); }

  // A message of the device whose last use is not over yet, so that sending has to wait for it.
  SharedBuffer Bytes(const std::string& text) {
    SharedBuffer buffer = pool_->Get(static_cast<std::int64_t>(text.size())).value();
    QST_EXPECT_OK(buffer->BeginUse(TestContext()));
    QST_EXPECT_OK(Upload(TestContext(), text.data(), static_cast<std::int64_t>(text.size()), buffer->data()));
    QST_EXPECT_OK(buffer->EndUse(TestContext()));
    return buffer;
  }
  static std::string Text(const SharedBuffer& buffer) {
    std::string text(buffer->size(), '\0');
    EXPECT_TRUE(buffer->is_on_device());
    QST_EXPECT_OK(buffer->BeginUse(TestContext()));
    QST_EXPECT_OK(Download(TestContext(), buffer->data(), static_cast<std::int64_t>(text.size()), text.data()));
    QST_EXPECT_OK(buffer->EndUse(TestContext()));
    return text;
  }

  std::shared_ptr<BufferPool> pool_;
};

INSTANTIATE_TEST_SUITE_P(Modes, NcclTransportTest, testing::Values("0", "1", "late", "early"),
                         [](const testing::TestParamInfo<std::string>& info) { return "Async" + info.param; });

std::string Pattern(std::size_t size, int seed) {
  std::string text(size, '\0');
  for (std::size_t i = 0; i < size; ++i) text[i] = static_cast<char>(i * 7 + i / 251 + static_cast<unsigned>(seed));
  return text;
}

TEST_P(NcclTransportTest, MessagesArriveIntactAndInOrderBothWaysAtOnce) {
  World world = Make(2);
  const std::vector<std::size_t> sizes = {5, 0, 1, 1000000, 4096, 0, 77, 300000, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3};
  std::vector<std::unique_ptr<PendingReceive>> pending[2];
  for (const int rank : {0, 1}) {
    for (std::size_t i = 0; i < sizes.size(); ++i) {
      pending[rank].push_back(world[rank]->ReceiveOnDevice(1 - rank, i, static_cast<std::int64_t>(sizes[i])).value());
    }
  }
  for (const int rank : {0, 1}) {
    for (std::size_t i = 0; i < sizes.size(); ++i) {
      QST_ASSERT_OK(world[rank]->Send(1 - rank, i, Bytes(Pattern(sizes[i], rank + static_cast<int>(i)))));
    }
  }
  for (const int rank : {1, 0}) {
    for (std::size_t i = 0; i < sizes.size(); ++i) {
      const auto message = pending[rank][i]->Wait(kLong);
      QST_ASSERT_OK(message);
      EXPECT_EQ(Text(*message), Pattern(sizes[i], 1 - rank + static_cast<int>(i))) << "rank " << rank << ", " << i;
    }
  }
}

TEST_P(NcclTransportTest, HostAndDeviceMessagesGoTheirOwnWays) {
  World world = Make(2);
  SharedBuffer host = BufferPool::Create()->Get(1).value();
  host->data()[0] = 42;
  auto device_pending = world[1]->ReceiveOnDevice(0, 7, 4).value();
  auto host_pending = world[1]->Receive(0, 7, 1).value();
  QST_ASSERT_OK(world[0]->Send(1, 7, std::move(host)));
  QST_ASSERT_OK(world[0]->Send(1, 7, Bytes("gpu!")));
  const auto host_message = host_pending->Wait(kLong);
  QST_ASSERT_OK(host_message);
  EXPECT_EQ((*host_message)->data()[0], 42);
  const auto device_message = device_pending->Wait(kLong);
  QST_ASSERT_OK(device_message);
  EXPECT_EQ(Text(*device_message), "gpu!");
}

TEST_P(NcclTransportTest, SlowStageDoesNotHoldUpAQuickOne) {
  World world = Connect(InprocControl(3), PipelineEdges(2));
  auto slow = world[2]->ReceiveOnDevice(0, 1, 5).value();
  auto quick = world[2]->ReceiveOnDevice(1, 1, 5).value();
  QST_ASSERT_OK(world[1]->Send(2, 1, Bytes("quick")));
  const auto first = quick->Wait(kLong);
  QST_ASSERT_OK(first);
  EXPECT_EQ(Text(*first), "quick");
  EXPECT_THAT(slow->Wait(absl::ZeroDuration()), StatusIs(absl::StatusCode::kDeadlineExceeded));
  QST_ASSERT_OK(world[0]->Send(2, 1, Bytes("slow!")));
  const auto second = slow->Wait(kLong);
  QST_ASSERT_OK(second);
  EXPECT_EQ(Text(*second), "slow!");
}

TEST_P(NcclTransportTest, WaitThatTimesOutLeavesTheReceivePostedAndDroppedOnesDisturbNobody) {
  World world = Make(2);
  world[1]->ReceiveOnDevice(0, 1, 3).value().reset();
  auto kept = world[1]->ReceiveOnDevice(0, 2, 3).value();
  EXPECT_THAT(kept->Wait(absl::Milliseconds(20)),
              StatusIs(absl::StatusCode::kDeadlineExceeded, HasSubstr("nothing from rank 0 on test within 20ms")));
  QST_ASSERT_OK(world[0]->Send(1, 1, Bytes("one")));
  QST_ASSERT_OK(world[0]->Send(1, 2, Bytes("two")));
  const auto message = kept->Wait(kLong);
  QST_ASSERT_OK(message);
  EXPECT_EQ(Text(*message), "two");
}

TEST_P(NcclTransportTest, SentBuffersReturnToTheirPool) {
  World world = Make(2);
  for (int i = 0; i < 30; ++i) {
    auto pending = world[1]->ReceiveOnDevice(0, i, 1 << 20).value();
    QST_ASSERT_OK(world[0]->Send(1, i, Bytes(Pattern(1 << 20, i))));
    QST_ASSERT_OK(pending->Wait(kLong));
    EXPECT_TRUE(pool_->AwaitFewerInUse(1, kLong));
  }
  EXPECT_LE(pool_->allocated_bytes(), 1 << 20);
}

TEST_P(NcclTransportTest, MessagesOutOfOrderAreRefused) {
  World world = Make(2);
  const Tag later = MakeTag(FrameKind::kHiddenStates, 3, 6);
  QST_ASSERT_OK(world[0]->Send(1, later, Bytes("x")));
  QST_ASSERT_OK(world[1]->ReceiveOnDevice(0, later, 1));
  for (const Tag earlier : {MakeTag(FrameKind::kHiddenStates, 3, 5), MakeTag(FrameKind::kHiddenStates, 2, 9)}) {
    EXPECT_THAT(world[0]->Send(1, earlier, Bytes("x")),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("by pass, then by layer")));
    EXPECT_THAT(world[1]->ReceiveOnDevice(0, earlier, 1),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("from rank 0 on test")));
  }
  QST_EXPECT_OK(world[0]->Send(1, MakeTag(FrameKind::kHiddenStates, 4, 0), Bytes("x")));
}

TEST_P(NcclTransportTest, EdgesGoOneWay) {
  World world = Connect(InprocControl(2), {{0, 1}});
  EXPECT_TRUE(world[0]->CarriesDeviceMemory(1));
  EXPECT_TRUE(world[1]->CarriesDeviceMemory(0));
  EXPECT_THAT(world[1]->Send(0, 1, Bytes("x")),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("no NCCL edge to rank 0")));
  EXPECT_THAT(world[0]->ReceiveOnDevice(1, 1, 1),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("no NCCL edge from rank 1")));
}

TEST_P(NcclTransportTest, AbortWakesWaitsAndGivesThePeersItsReason) {
  World world = Make(3);
  auto own = world[0]->ReceiveOnDevice(1, 1, 8).value();
  // Rank 1 waits for rank 2, which is well.
  auto other = world[1]->ReceiveOnDevice(2, 1, 8).value();
  // Nobody takes it: it ends with the abort.
  QST_ASSERT_OK(world[0]->Send(1, 1, Bytes("lost")));
  const absl::Time start = absl::Now();
  world[0]->Abort(absl::ResourceExhaustedError("out of memory"));
  EXPECT_THAT(own->Wait(kLong), StatusIs(absl::StatusCode::kResourceExhausted, testing::Eq("out of memory")));
  const auto result = other->Wait(kLong);
  EXPECT_THAT(result, StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("rank 0 on test: out of memory")));
  EXPECT_TRUE(IsPeerReported(result.status()));
  EXPECT_THAT(world[1]->Send(2, 1, Bytes("x")), StatusIs(absl::StatusCode::kResourceExhausted));
  world.clear();
  EXPECT_LT(absl::Now() - start, kNoticed);
}

TEST_P(NcclTransportTest, PeerThatGoesWithoutGoodbyeIsNamed) {
  World world = Make(2);
  auto pending = world[1]->ReceiveOnDevice(0, 1, 8).value();
  const absl::Time start = absl::Now();
  std::thread killer([&world] { world[0].reset(); });
  EXPECT_THAT(pending->Wait(kLong), StatusIs(absl::StatusCode::kUnavailable, HasSubstr("rank 0 on test")));
  killer.join();
  world.clear();
  EXPECT_LT(absl::Now() - start, kNoticed);
}

TEST_P(NcclTransportTest, ErrorOfNcclEndsTheCommunicatorEverywhere) {
  World world = Make(2);
  auto pending = world[1]->ReceiveOnDevice(0, 1, 8).value();
  absl::Status heard;
  absl::Mutex mutex;
  for (const int rank : {0, 1}) {
    world[rank]->OnFailure([&](const absl::Status& status) {
      absl::MutexLock lock(&mutex);
      heard = status;
    });
  }
  setenv("QST_CUDA_SHIM_NCCL_ERROR", "2", 1);
  const absl::Time start = absl::Now();
  EXPECT_THAT(pending->Wait(kLong),
              StatusIs(absl::StatusCode::kInternal, HasSubstr("on test: unhandled system error")));
  EXPECT_LT(absl::Now() - start, kNoticed);
  while (world[0]->status().ok()) {
  }
  unsetenv("QST_CUDA_SHIM_NCCL_ERROR");
  EXPECT_THAT(world[0]->status(), StatusIs(absl::StatusCode::kInternal, HasSubstr("NCCL, edge")));
  world.clear();
  EXPECT_THAT(heard, StatusIs(absl::StatusCode::kInternal));
}

TEST_P(NcclTransportTest, MessagesSentBeforeCloseArrive) {
  World world = Make(2);
  auto pending = world[1]->ReceiveOnDevice(0, 1, 3).value();
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
  EXPECT_THAT(world[1]->Send(0, 1, Bytes("x")), StatusIs(absl::StatusCode::kFailedPrecondition));
}

TEST_P(NcclTransportTest, CloseDoesNotWaitForeverForMessagesThatNobodyTakes) {
  World world = Make(2);
  QST_ASSERT_OK(world[0]->Send(1, 1, Bytes("a")));
  QST_ASSERT_OK(world[0]->Send(1, 1, Bytes("b")));
  EXPECT_THAT(world[0]->Close(absl::Milliseconds(50), ""),
              StatusIs(absl::StatusCode::kDeadlineExceeded, HasSubstr("rank 1 on test did not take 2 messages")));
  world[0].reset();
  EXPECT_THAT(world[1]->status(), StatusIs(absl::StatusCode::kUnavailable, HasSubstr("rank 0 on test")));
}

TEST_P(NcclTransportTest, PeerThatLeavesBeforeItSentWhatIsAskedForIsNamed) {
  World world = Make(2);
  auto pending = world[1]->ReceiveOnDevice(0, 1, 8).value();
  std::thread closer([&] { world[0]->Close(kLong, "").IgnoreError(); });
  EXPECT_THAT(pending->Wait(kLong),
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr("rank 0 on test left before it sent")));
  closer.join();
  EXPECT_THAT(world[1]->status(), StatusIs(absl::StatusCode::kUnavailable));
}

TEST_P(NcclTransportTest, PeerThatDoesNotConnectIsNamedAfterTheTimeout) {
  for (const int rank : {0, 1}) {
    auto control = InprocControl(2);
    NcclOptions options = Options(2, {{0, 1}});
    options.connect_timeout = absl::Milliseconds(100);
    auto transport = NcclTransport::Create(std::move(control[rank]), options).value();
    EXPECT_THAT(transport->Connect(),
                StatusIs(absl::StatusCode::kUnavailable,
                         HasSubstr(absl::StrCat("rank ", 1 - rank, " on test did not connect within 100ms"))));
    // So that it does not wait either.
    EXPECT_THAT(control[1 - rank]->status(), StatusIs(absl::StatusCode::kUnavailable));
  }
}

TEST_P(NcclTransportTest, AbortEndsTheWaitForAConnection) {
  for (const int rank : {0, 1}) {
    auto control = InprocControl(2);
    auto transport = NcclTransport::Create(std::move(control[rank]), Options(2, {{0, 1}})).value();
    std::thread aborter([&] { transport->Abort(absl::CancelledError("released")); });
    EXPECT_THAT(transport->Connect(), StatusIs(absl::StatusCode::kCancelled, HasSubstr("released")));
    aborter.join();
  }
}

TEST_P(NcclTransportTest, ImpossibleOptionsAreRefused) {
  EXPECT_THAT(NcclTransport::Create(std::move(InprocControl(2)[0]), Options(2, {{0, 2}})),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("from rank 0 to rank 2 of 2")));
  EXPECT_THAT(NcclTransport::Create(std::move(InprocControl(2)[0]), Options(3, {})),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("3 names for 2 ranks")));
  NcclOptions options = Options(2, {{0, 1}});
  options.ctx = OpContext();
  EXPECT_THAT(NcclTransport::Create(std::move(InprocControl(2)[0]), options),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("computes on its CPU")));
}

TEST_P(NcclTransportTest, DescriptionNamesVersionAndEdges) {
  const World world = Connect(InprocControl(3), PipelineEdges(2));
  const auto* const stage = dynamic_cast<const NcclTransport*>(world[1].get());
  ASSERT_NE(stage, nullptr);
  EXPECT_EQ(stage->Describe(), "NCCL 2.28.9: from rank 0 on test, to rank 2 on test");
}

// ---- Ranks as processes: with one GPU, too ----------------------------------------------------------------

constexpr char kChildPipes[] = "QST_NCCL_TEST_CHILD";
constexpr std::int64_t kLargeBytes = 64 << 20;

std::unique_ptr<NcclTransport> ConnectProcess(int rank, int in, int out) {
  PipeKeyValueStore store(in, out);
  auto transport = NcclTransport::Create(ConnectGloo(rank, 2, {1 - rank}, store), Options(2, AllEdges(2))).value();
  QST_EXPECT_OK(transport->Connect());
  return transport;
}

TEST(NcclProcessTest, ChildThatDiesInMidMessage) {
  const char* const pipes = std::getenv(kChildPipes);
  if (pipes == nullptr) GTEST_SKIP() << "rank 0 of the next test, which starts it";
  int in = -1;
  int out = -1;
  ASSERT_EQ(std::sscanf(pipes, "%d,%d", &in, &out), 2);
  auto transport = ConnectProcess(0, in, out);
  auto pool = BufferPool::Create(TestContext());
  auto echo = transport->ReceiveOnDevice(1, 1, 1000).value()->Wait(kLong);
  QST_ASSERT_OK(echo);
  QST_ASSERT_OK(transport->Send(1, 1, *echo));
  QST_ASSERT_OK(transport->ReceiveOnDevice(1, 2, 1).value()->Wait(kLong));
  QST_ASSERT_OK(transport->Send(1, 3, pool->Get(kLargeBytes).value()));
  raise(SIGKILL);
}

TEST(NcclProcessTest, KilledProcessIsNoticedWithinSecondsEvenInMidMessage) {
  if (!HasGpu()) GTEST_SKIP() << "no GPU, or a build without the CUDA backend";
  // Two ranks may share a GPU if they pretend to be on different hosts.
  setenv("NCCL_HOSTID", "parent", 0);
  setenv("NCCL_SOCKET_IFNAME", "lo", 0);
  int to_child[2];
  int to_parent[2];
  ASSERT_EQ(pipe(to_child), 0);
  ASSERT_EQ(pipe(to_parent), 0);
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    setenv(kChildPipes, absl::StrCat(to_child[0], ",", to_parent[1]).c_str(), 1);
    setenv("NCCL_HOSTID", "child", 1);
    unsetenv("XML_OUTPUT_FILE");
    unsetenv("TEST_SHARD_INDEX");
    execl("/proc/self/exe", "nccl_child", "--gtest_filter=*ChildThatDies*", static_cast<char*>(nullptr));
    _exit(127);
  }
  auto transport = ConnectProcess(1, to_parent[0], to_child[1]);
  auto pool = BufferPool::Create(TestContext());
  const std::string sent = Pattern(1000, 3);
  SharedBuffer buffer = pool->Get(1000).value();
  QST_ASSERT_OK(buffer->BeginUse(TestContext()));
  QST_ASSERT_OK(Upload(TestContext(), sent.data(), 1000, buffer->data()));
  QST_ASSERT_OK(buffer->EndUse(TestContext()));
  auto echo = transport->ReceiveOnDevice(0, 1, 1000).value();
  auto half = transport->ReceiveOnDevice(0, 3, kLargeBytes).value();
  auto never = transport->ReceiveOnDevice(0, 4, 8).value();
  QST_ASSERT_OK(transport->Send(0, 1, std::move(buffer)));
  const auto echoed = echo->Wait(kLong);
  QST_ASSERT_OK(echoed);
  std::string received(1000, '\0');
  QST_ASSERT_OK((*echoed)->BeginUse(TestContext()));
  QST_ASSERT_OK(Download(TestContext(), (*echoed)->data(), 1000, received.data()));
  QST_ASSERT_OK((*echoed)->EndUse(TestContext()));
  EXPECT_EQ(received, sent);

  QST_ASSERT_OK(transport->Send(0, 2, pool->Get(1).value()));
  int wait_status = 0;
  ASSERT_EQ(waitpid(child, &wait_status, 0), child);
  ASSERT_TRUE(WIFSIGNALED(wait_status)) << wait_status;
  const absl::Time start = absl::Now();
  EXPECT_THAT(never->Wait(absl::Seconds(60)), StatusIs(absl::StatusCode::kUnavailable, HasSubstr("rank 0 on test")));
  EXPECT_LT(absl::Now() - start, absl::Seconds(5));
  transport.reset();
  EXPECT_LT(absl::Now() - start, kNoticed);
  for (int fd : {to_child[0], to_child[1], to_parent[0], to_parent[1]}) close(fd);
}

TEST(NcclEdgesTest, PipelineGoesToTheNextStageAndToTheSide) {
  std::vector<std::pair<int, int>> edges;
  for (const NcclEdge& edge : PipelineEdges(3)) edges.emplace_back(edge.from, edge.to);
  EXPECT_EQ(edges, (std::vector<std::pair<int, int>>{{0, 1}, {0, 3}, {1, 2}, {1, 3}, {2, 3}}));
}

TEST(NcclEdgesTest, BuildsWithoutCudaSayWhatIsMissing) {
  if (HasGpu()) GTEST_SKIP() << "this one has a GPU";
  EXPECT_FALSE(NcclTransport::Create(std::move(InprocControl(2)[0]), NcclOptions()).ok());
}

}  // namespace
}  // namespace qst
