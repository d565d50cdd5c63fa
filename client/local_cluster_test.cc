// up and down, with stand-ins for the daemons (testing/fake_daemon.cc).
#include "client/local_cluster.h"

#include <signal.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "client/atomic_file.h"
#include "client/coordinator_client.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/support/status_matchers.h"

namespace qst {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::UnorderedElementsAre;

class LocalClusterTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = absl::StrCat(std::getenv("TEST_TMPDIR") ? std::getenv("TEST_TMPDIR") : "/tmp", "/up-XXXXXX");
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    folder_ = name;
    options_.store = folder_ + "/store";
    options_.bin_dir = folder_ + "/bin";
    options_.listen = "127.0.0.1:0";
    options_.num_workers = 2;
    std::filesystem::create_directories(options_.store);
    std::filesystem::create_directories(options_.bin_dir);
    const std::string daemon = std::filesystem::absolute("client/testing/fake_daemon");
    ASSERT_TRUE(std::filesystem::exists(daemon)) << daemon;
    for (const char* program : {"/qst-coordinator", "/qst-worker"}) {
      std::filesystem::create_symlink(daemon, options_.bin_dir + program);
    }
  }
  void TearDown() override {
    for (const auto& entry : std::filesystem::directory_iterator(options_.store)) {
      if (entry.path().filename().string().rfind("mute-", 0) == 0) std::filesystem::remove(entry.path());
    }
    QST_EXPECT_OK(BringDown(options_.store, absl::Seconds(10), Say()));
    std::filesystem::remove_all(folder_);
  }

  std::function<void(const std::string&)> Say() {
    return [this](const std::string& line) { absl::StrAppend(&said_, line, "\n"); };
  }
  absl::StatusOr<UpResult> Up() { return BringUp(options_, Say()); }
  void Mark(const std::string& name) { std::ofstream(options_.store + "/" + name) << "x"; }

  static void Kill(const ClusterState& state, const std::string& name) {
    const ProcessId process = state.Find(name)->process;
    ASSERT_EQ(kill(process.pid, SIGKILL), 0);
    while (IsAlive(process)) absl::SleepFor(absl::Milliseconds(1));
  }

  std::string folder_;
  UpOptions options_;
  std::string said_;
};

TEST_F(LocalClusterTest, UpStartsAllAndDownStopsAll) {
  options_.threads_per_worker = 5;
  options_.device = "cpu";
  const auto up = Up();
  QST_ASSERT_OK(up);
  EXPECT_THAT(up->started, ElementsAre("coordinator", "w0", "w1"));
  CoordinatorClient client({up->state.address, absl::Seconds(10)});
  EXPECT_EQ(client.ListWorkers()->workers_size(), 2);
  EXPECT_THAT(*ReadFile(options_.store + "/logs/w1.log", 10000),
              HasSubstr(absl::StrCat("w1 starts: --coordinator=", up->state.address, " --store=", options_.store,
                                     " --id=w1 --threads=5 --device=cpu\n")));
  EXPECT_EQ(*BringDown(options_.store, absl::Seconds(10), Say()), 3);
  for (const ClusterMember& member : up->state.members) EXPECT_FALSE(IsAlive(member.process));
  EXPECT_EQ(*BringDown(options_.store, absl::Seconds(10), Say()), 0);
  EXPECT_EQ(said_, "");
}

TEST_F(LocalClusterTest, SecondUpStartsNothing) {
  QST_ASSERT_OK(Up());
  const auto again = Up();
  QST_ASSERT_OK(again);
  EXPECT_THAT(again->started, IsEmpty());
  EXPECT_EQ(again->state.members.size(), 3u);
}

TEST_F(LocalClusterTest, SecondUpReplacesTheDeadAndKeepsTheAddress) {
  const auto first = Up();
  QST_ASSERT_OK(first);
  Kill(first->state, "coordinator");
  Kill(first->state, "w1");
  options_.num_workers = 3;
  const auto second = Up();
  QST_ASSERT_OK(second);
  EXPECT_THAT(second->started, UnorderedElementsAre("coordinator", "w1", "w2"));
  EXPECT_EQ(second->state.address, first->state.address);
  EXPECT_EQ(second->state.Find("w0")->process.pid, first->state.Find("w0")->process.pid);
}

TEST_F(LocalClusterTest, DaemonThatEndsIsReportedWithItsLogAndTheOthersAreStopped) {
  Mark("break-w1");
  EXPECT_THAT(Up(), StatusIs(absl::StatusCode::kUnknown, HasSubstr("w1 ended while starting; see ")));
  EXPECT_THAT(said_, HasSubstr("  w1: this one is broken\n"));
  const auto state = LoadClusterState(options_.store);
  QST_ASSERT_OK(state);
  for (const ClusterMember& member : (*state)->members) EXPECT_FALSE(IsAlive(member.process)) << member.name;
  std::filesystem::remove(options_.store + "/break-w1");
  QST_EXPECT_OK(Up());
}

TEST_F(LocalClusterTest, DaemonThatNeverServesIsGivenUp) {
  options_.wait = absl::Milliseconds(500);
  Mark("idle-w0");
  EXPECT_THAT(Up(), StatusIs(absl::StatusCode::kDeadlineExceeded,
                             HasSubstr("w0 has not registered with the coordinator within 500ms")));
  Mark("idle-coordinator");
  EXPECT_THAT(Up(), StatusIs(absl::StatusCode::kDeadlineExceeded, HasSubstr("coordinator has not begun to serve")));
}

TEST_F(LocalClusterTest, DaemonThatIgnoresTheRequestIsKilled) {
  const auto up = Up();
  QST_ASSERT_OK(up);
  Mark("mute-w0");
  EXPECT_EQ(*BringDown(options_.store, absl::Milliseconds(300), Say()), 3);
  EXPECT_THAT(said_, HasSubstr("did not end in 300ms; killed it"));
  EXPECT_FALSE(IsAlive(up->state.Find("w0")->process));
}

TEST_F(LocalClusterTest, StrangersProcessIsNeverSignalled) {
  ClusterState state;
  state.store = options_.store;
  state.boot_id = BootId();
  // This very process, but with another start time: what a recycled number looks like.
  state.members = {{"coordinator", {getpid(), 1}, "log"}, {"w0", {1, 0}, "log"}};
  QST_ASSERT_OK(SaveClusterState(state));
  EXPECT_EQ(*BringDown(options_.store, absl::Seconds(1), Say()), 0);
}

TEST_F(LocalClusterTest, StateOfAnotherBootHasNoLivingMembers) {
  const auto up = Up();
  QST_ASSERT_OK(up);
  ClusterState state = up->state;
  EXPECT_TRUE(state.IsMemberAlive("w0"));
  state.boot_id = "another";
  EXPECT_FALSE(state.IsMemberAlive("w0"));
}

TEST_F(LocalClusterTest, OtherAddressIsRefusedWhileUp) {
  QST_ASSERT_OK(Up());
  options_.listen = "127.0.0.1:1";
  EXPECT_THAT(Up(), StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("stop it first with `qst down")));
}

TEST_F(LocalClusterTest, WorkersAreSpreadOverGpus) {
  options_.device = "cuda";
  options_.num_gpus = 2;
  QST_ASSERT_OK(Up());
  for (const char* name : {"w0", "w1"}) {
    const std::string log = *ReadFile(absl::StrCat(options_.store, "/logs/", name, ".log"), 10000);
    EXPECT_THAT(log, HasSubstr(absl::StrCat(" --device=cuda:", name + 1, "\n")));
  }
  EXPECT_EQ(said_, "");
}

TEST_F(LocalClusterTest, WorkersThatShareAGpuAreHostsOfTheirOwnForNccl) {
  options_.device = "cuda";
  const auto first = Up();
  QST_ASSERT_OK(first);
  EXPECT_THAT(*ReadFile(options_.store + "/logs/w1.log", 10000),
              HasSubstr(" --device=cuda:0 NCCL_HOSTID=w1 NCCL_SOCKET_IFNAME=lo\n"));
  EXPECT_THAT(*ReadFile(options_.store + "/logs/coordinator.log", 10000), Not(HasSubstr("NCCL")));
  EXPECT_THAT(said_, HasSubstr("w0, w1 share cuda:0: NCCL_HOSTID is set for each"));
  // What is missing comes back as it was.
  Kill(first->state, "w1");
  QST_ASSERT_OK(Up());
  EXPECT_THAT(*ReadFile(options_.store + "/logs/w1.log", 10000), AllOf(HasSubstr("cuda:0"), Not(HasSubstr("auto"))));
}

TEST_F(LocalClusterTest, OtherDeviceIsRefusedWhileUp) {
  QST_ASSERT_OK(Up());
  options_.device = "cuda";
  EXPECT_THAT(Up(), StatusIs(absl::StatusCode::kFailedPrecondition,
                             HasSubstr("computes on cuda:0 where there is a GPU, else cpu; to change that, stop it")));
  options_.device = "auto";
  QST_EXPECT_OK(Up());
}

TEST_F(LocalClusterTest, DamagedStateIsReported) {
  Mark("cluster.json");
  EXPECT_THAT(Up(), StatusIs(absl::StatusCode::kDataLoss, HasSubstr("cluster.json: damaged")));
  EXPECT_THAT(BringDown(options_.store, absl::Seconds(1), Say()), StatusIs(absl::StatusCode::kDataLoss));
  std::filesystem::remove(options_.store + "/cluster.json");
}

TEST_F(LocalClusterTest, MissingProgramIsReported) {
  options_.bin_dir = folder_ + "/none";
  EXPECT_THAT(Up(), StatusIs(absl::StatusCode::kNotFound, HasSubstr("program qst-coordinator is in none of")));
}

TEST_F(LocalClusterTest, CurrentClusterIsFoundByLaterCommands) {
  const GetEnv getenv = [this](const std::string& name) -> std::optional<std::string> {
    return name == "HOME" ? std::optional<std::string>(folder_) : std::nullopt;
  };
  EXPECT_EQ(CurrentStore(getenv), folder_ + "/.local/share/qst");
  EXPECT_EQ(CurrentAddress(getenv), std::nullopt);
  const auto up = Up();
  QST_ASSERT_OK(up);
  QST_ASSERT_OK(SetCurrentStore(getenv, options_.store));
  EXPECT_EQ(CurrentStore(getenv), options_.store);
  EXPECT_EQ(CurrentAddress(getenv), up->state.address);
  Kill(up->state, "coordinator");
  EXPECT_EQ(CurrentAddress(getenv), up->state.address);
  QST_ASSERT_OK(BringDown(options_.store, absl::Seconds(10), Say()));
  EXPECT_EQ(CurrentAddress(getenv), std::nullopt);
}

}  // namespace
}  // namespace qst
