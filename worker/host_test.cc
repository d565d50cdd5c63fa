#include "worker/host.h"

#include <atomic>
#include <map>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "gtest/gtest.h"
#include "proto/support/status_matchers.h"
#include "worker/host_link.h"

namespace qst {
namespace {

constexpr absl::Duration kLong = absl::Seconds(30);

v1::WorkerCommand HostCommand(const std::string& job, bool is_side, std::uint32_t stage) {
  v1::WorkerCommand command;
  v1::JobPlan& plan = *command.mutable_host()->mutable_plan();
  plan.set_job_id(job);
  plan.set_plan_id(job + "/1");
  for (std::uint32_t i = 0; i < 2; ++i) {
    v1::PlacedStage& placed = *plan.add_stages();
    placed.set_stage(i);
    placed.set_worker_id("w0");
    placed.set_first_layer(3 * i);
    placed.set_num_layers(3);
  }
  plan.set_side_worker_id("w0");
  plan.set_max_passes_in_flight(2);
  plan.set_backbone_batch_tokens(64);
  command.mutable_host()->set_is_side(is_side);
  command.mutable_host()->set_stage(stage);
  if (is_side) command.mutable_host()->mutable_train();
  return command;
}

v1::WorkerCommand ReleaseCommand(const std::string& job) {
  v1::WorkerCommand command;
  command.mutable_release()->set_plan_id(job + "/1");
  return command;
}

// Runs until it is aborted or cancelled, in a link of its plan.
class FakePart : public Part {
 public:
  FakePart(const v1::HostPart& command, const PartContext& context, std::atomic<int>* num_alive)
      : link_(command.plan(), RankOf(command.plan(), command), context), num_alive_(num_alive) {
    ++*num_alive_;
  }
  ~FakePart() override { --*num_alive_; }

  void Run() override {
    const auto transport = link_.Connect();
    started.Notify();
    if (!transport.ok()) return;
    const int peer = (*transport)->rank() == 0 ? 1 : 0;
    auto pending = (*transport)->Receive(peer, 1, 1);
    status = pending.ok() ? (*pending)->Wait(absl::InfiniteDuration()).status() : pending.status();
  }
  void Abort(const absl::Status& reason) override { link_.Abort(reason); }
  void Cancel() override {
    was_cancelled = true;
    link_.Abort(absl::CancelledError("cancelled"));
  }

  absl::Notification started;
  std::atomic<bool> was_cancelled{false};
  absl::Status status;

 private:
  PartLink link_;
  std::atomic<int>* const num_alive_;
};

class HostTest : public testing::Test {
 protected:
  HostTest() : device_(ComputeDevice::Open(ComputeDeviceOptions()).value()), memory_(1000) {
    PartContext context;
    context.worker_id = "w0";
    context.device = device_.get();
    context.reports = &reports_;
    context.memory = &memory_;
    context.make_store = [](const std::string&) { return std::make_unique<InMemoryKeyValueStore>(); };
    host_ = std::make_unique<Host>(context, [this](const v1::HostPart& command, const PartContext& part_context) {
      auto part = std::make_unique<FakePart>(command, part_context, &num_alive_);
      absl::MutexLock lock(&mutex_);
      parts_.push_back(part.get());
      changed_.SignalAll();
      return part;
    });
    reports_.BeginSession();
  }

  FakePart* WaitForPart(std::size_t index) {
    absl::MutexLock lock(&mutex_);
    while (parts_.size() <= index) changed_.Wait(&mutex_);
    return parts_[index];
  }
  v1::PartReport WaitForReport() {
    const auto report = reports_.Take(absl::Now() + kLong);
    EXPECT_TRUE(report.has_value() && report->has_part());
    return report.has_value() ? report->part() : v1::PartReport();
  }

  std::unique_ptr<ComputeDevice> device_;
  WorkerReports reports_;
  MemoryBudget memory_;
  std::atomic<int> num_alive_{0};
  absl::Mutex mutex_;
  absl::CondVar changed_;
  std::vector<FakePart*> parts_;
  std::unique_ptr<Host> host_;
};

TEST_F(HostTest, PartsOfOnePlanMeetInProcessAndAreReleasedTogether) {
  host_->Handle(HostCommand("j", false, 0));
  host_->Handle(HostCommand("j", false, 1));
  host_->Handle(HostCommand("j", true, 0));
  for (std::size_t i = 0; i < 3; ++i) WaitForPart(i)->started.WaitForNotification();
  EXPECT_EQ(host_->Hosted().size(), 3u);
  host_->Handle(ReleaseCommand("j"));
  for (int i = 0; i < 3; ++i) {
    const v1::PartReport report = WaitForReport();
    EXPECT_EQ(report.state(), v1::PART_STATE_RELEASED);
    EXPECT_EQ(report.part().plan_id(), "j/1");
  }
  EXPECT_EQ(num_alive_, 0);
  EXPECT_TRUE(host_->Hosted().empty());
}

TEST_F(HostTest, CommandThatComesAgainStartsNothing) {
  host_->Handle(HostCommand("j", false, 0));
  host_->Handle(HostCommand("j", false, 0));
  WaitForPart(0)->started.WaitForNotification();
  host_->Handle(ReleaseCommand("j"));
  WaitForReport();
  EXPECT_EQ(parts_.size(), 1u);
}

TEST_F(HostTest, NextPlanBeginsWhenTheLastOneIsGone) {
  host_->Handle(HostCommand("a", false, 0));
  WaitForPart(0)->started.WaitForNotification();
  host_->Handle(ReleaseCommand("a"));
  host_->Handle(HostCommand("b", false, 0));
  WaitForPart(1)->started.WaitForNotification();
  EXPECT_EQ(num_alive_, 1);
  EXPECT_EQ(WaitForReport().part().plan_id(), "a/1");
}

TEST_F(HostTest, CancelReachesTheSideNetworkOnly) {
  host_->Handle(HostCommand("j", false, 0));
  host_->Handle(HostCommand("j", true, 0));
  FakePart* const stage = WaitForPart(0);
  FakePart* const side = WaitForPart(1);
  stage->started.WaitForNotification();
  side->started.WaitForNotification();
  v1::WorkerCommand cancel;
  cancel.mutable_cancel()->set_plan_id("j/1");
  host_->Handle(cancel);
  EXPECT_TRUE(side->was_cancelled);
  EXPECT_FALSE(stage->was_cancelled);
}

TEST_F(HostTest, ImpossiblePlansAreRefusedWithAReason) {
  v1::WorkerCommand command = HostCommand("j", false, 7);
  host_->Handle(command);
  v1::PartReport report = WaitForReport();
  EXPECT_EQ(report.state(), v1::PART_STATE_FAILED);
  EXPECT_EQ(report.code(), static_cast<int>(absl::StatusCode::kInvalidArgument));
  EXPECT_EQ(report.message(), "plan j/1: no stage 7");
  command = HostCommand("k", false, 0);
  command.mutable_host()->mutable_plan()->mutable_stages(1)->set_first_layer(4);
  host_->Handle(command);
  EXPECT_EQ(WaitForReport().message(), "plan k/1: stage 1 is out of order");
  // More than 32 bits can count, and than a frame's tag can name.
  command = HostCommand("l", false, 0);
  v1::JobPlan* const plan = command.mutable_host()->mutable_plan();
  plan->mutable_stages(0)->set_num_layers(0xffffffff);
  plan->mutable_stages(1)->set_first_layer(0xffffffff);
  plan->mutable_stages(1)->set_num_layers(2);
  host_->Handle(command);
  EXPECT_EQ(WaitForReport().message(), "plan l/1: 4294967297 layers, at most 65535");
}

TEST_F(HostTest, ReleaseOfAnUnknownPlanIsIgnored) {
  host_->Handle(ReleaseCommand("nobody"));
  EXPECT_FALSE(reports_.Take(absl::InfinitePast()).has_value());
}

TEST_F(HostTest, FailedImportIsReportedWithItsReason) {
  v1::WorkerCommand command;
  command.mutable_import()->set_name("m");
  command.mutable_import()->set_source_path("/no/such/model");
  command.mutable_import()->set_destination_path(testing::TempDir() + "/m");
  host_->Handle(command);
  const auto report = reports_.Take(absl::Now() + kLong);
  ASSERT_TRUE(report.has_value() && report->has_model());
  EXPECT_EQ(report->model().model().state(), v1::MODEL_STATE_FAILED);
  EXPECT_THAT(report->model().model().status_message(), testing::HasSubstr("/no/such/model"));
}

TEST_F(HostTest, BudgetIsWhatThePartsAskedFor) {
  memory_.Set("a", 500);
  memory_.Set("b", 70);
  const std::int64_t both = memory_.total_bytes();
  memory_.Remove("b");
  EXPECT_EQ(both - memory_.total_bytes(), 70);
  memory_.Remove("a");
  EXPECT_EQ(memory_.total_bytes(), 1000);
}

}  // namespace
}  // namespace qst
