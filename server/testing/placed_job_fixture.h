// A job on two stages and a side network with three fake workers, brought as far as a test needs.
#ifndef QST_SERVER_TESTING_PLACED_JOB_FIXTURE_H_
#define QST_SERVER_TESTING_PLACED_JOB_FIXTURE_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"
#include "server/testing/server_fixture.h"

namespace qst {

class PlacedJobFixture : public ServerFixture {
 protected:
  void StartWorkers() {
    for (const char* id : {"w0", "w1", "w2"}) workers_.push_back(NewWorker(id));
  }
  void Place() {
    job_id_ = SubmitJob(2, 0);
    StartWorkers();
    TakeParts();
  }
  void TakeParts() {
    parts_.clear();
    for (auto& worker : workers_) {
      const std::vector<v1::HostPart> parts = worker->AwaitParts(1);
      ASSERT_EQ(parts.size(), 1u);
      parts_.push_back(parts[0]);
    }
  }
  void Run() {
    Place();
    for (int i = 0; i < 3; ++i) workers_[i]->ReportPart(parts_[i], v1::PART_STATE_READY);
    side()->ReportState(side_part(), 1, v1::JOB_STATE_RUNNING);
    AwaitState(job_id_, v1::JOB_STATE_RUNNING);
  }
  // All parts say that they are gone.
  void Release() {
    for (int i = 0; i < 3; ++i) {
      const auto release = workers_[i]->Await(v1::WorkerCommand::kRelease);
      ASSERT_TRUE(release.has_value());
      EXPECT_EQ(release->release().plan_id(), parts_[i].plan().plan_id());
      workers_[i]->ReportPart(parts_[i], v1::PART_STATE_RELEASED);
    }
    for (const char* id : {"w0", "w1", "w2"}) AwaitWorker(id, v1::WORKER_STATE_IDLE);
  }
  // After a crash of the coordinator: the same processes say what they host.
  void ReturnWorkers(int count) {
    workers_.clear();
    for (int i = 0; i < count; ++i) {
      workers_.push_back(NewWorker(absl::StrCat("w", i), {FakeWorker::PartOf(parts_[i])}));
    }
  }
  // Time passes, and the workers go on saying that they live.
  void AdvanceWithHeartbeats(absl::Duration by) {
    for (; by > absl::ZeroDuration(); by -= absl::Seconds(1)) {
      Advance(absl::Seconds(1));
      for (auto& worker : workers_) worker->ReportHeartbeat();
    }
  }
  FakeWorker* side() { return workers_[2].get(); }
  const v1::HostPart& side_part() { return parts_[2]; }

  std::string job_id_;
  std::vector<std::unique_ptr<FakeWorker>> workers_;
  std::vector<v1::HostPart> parts_;
};

}  // namespace qst

#endif  // QST_SERVER_TESTING_PLACED_JOB_FIXTURE_H_
