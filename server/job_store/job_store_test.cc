// One suite for every JobStore; what only SQLite has comes after it.
#include "server/job_store/job_store.h"

#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/support/status_matchers.h"
#include "server/job_store/in_memory_job_store.h"
#include "server/job_store/sqlite_connection.h"
#include "server/job_store/sqlite_job_store.h"

namespace qst {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

std::string NewPath() {
  static int count = 0;
  const std::string path =
      testing::TempDir() + "/store-" + std::to_string(getpid()) + "-" + std::to_string(count++) + ".db";
  std::filesystem::remove(path);
  return path;
}

JobRecord NewJob(const std::string& id, const std::string& request_id = "") {
  JobRecord record;
  record.job.set_id(id);
  record.job.set_state(v1::JOB_STATE_QUEUED);
  record.job.mutable_spec()->set_name("n");
  record.request_id = request_id;
  return record;
}

v1::JobEvent Event(std::uint64_t sequence, const std::string& message) {
  v1::JobEvent event;
  event.set_sequence(sequence);
  event.set_message(message);
  return event;
}

std::vector<std::string> Ids(const std::vector<JobRecord>& records) {
  std::vector<std::string> ids;
  for (const JobRecord& record : records) ids.push_back(record.job.id());
  return ids;
}

using MakeStore = std::unique_ptr<JobStore> (*)();

class JobStoreTest : public testing::TestWithParam<MakeStore> {
 protected:
  std::unique_ptr<JobStore> store_ = GetParam()();
};

TEST_P(JobStoreTest, AJobComesBackAsItWasStored) {
  JobRecord record = NewJob("j-1", "r-1");
  record.last_sequence = 1;
  QST_ASSERT_OK(store_->CreateJob(record, {Event(1, "accepted")}));
  record.job.set_state(v1::JOB_STATE_RUNNING);
  record.last_sequence = 3;
  record.report_sequence = 7;
  record.cancel_requested = true;
  QST_ASSERT_OK(store_->UpdateJob(record, {Event(2, "a"), Event(3, "b")}, Durability::kProcess));
  const auto stored = store_->GetJob("j-1");
  ASSERT_TRUE(stored.ok()) << stored.status();
  EXPECT_EQ(stored->job.SerializeAsString(), record.job.SerializeAsString());
  EXPECT_EQ(stored->request_id, "r-1");
  EXPECT_EQ(stored->last_sequence, 3u);
  EXPECT_EQ(stored->report_sequence, 7u);
  EXPECT_TRUE(stored->cancel_requested);
  EXPECT_THAT(store_->GetJob("j-2"), StatusIs(absl::StatusCode::kNotFound));
  EXPECT_THAT(store_->UpdateJob(NewJob("j-2"), {}, Durability::kSynced), StatusIs(absl::StatusCode::kNotFound));
}

TEST_P(JobStoreTest, IdsAndRequestIdsAreTakenOnce) {
  QST_ASSERT_OK(store_->CreateJob(NewJob("j-1", "r-1"), {}));
  EXPECT_THAT(store_->CreateJob(NewJob("j-1", "r-2"), {}), StatusIs(absl::StatusCode::kAlreadyExists));
  EXPECT_THAT(store_->CreateJob(NewJob("j-2", "r-1"), {}), StatusIs(absl::StatusCode::kAlreadyExists));
  // Without one, there is nothing to be taken.
  QST_EXPECT_OK(store_->CreateJob(NewJob("j-3"), {}));
  QST_EXPECT_OK(store_->CreateJob(NewJob("j-4"), {}));
  EXPECT_EQ((*store_->FindJobByRequest("r-1"))->job.id(), "j-1");
  EXPECT_FALSE(store_->FindJobByRequest("r-2")->has_value());
  EXPECT_FALSE(store_->FindJobByRequest("")->has_value());
}

TEST_P(JobStoreTest, JobsAreListedNewestFirst) {
  for (const char* id : {"j-3", "j-1", "j-2"}) QST_ASSERT_OK(store_->CreateJob(NewJob(id), {}));
  JobRecord running = NewJob("j-1");
  running.job.set_state(v1::JOB_STATE_RUNNING);
  QST_ASSERT_OK(store_->UpdateJob(running, {}, Durability::kSynced));
  EXPECT_THAT(Ids(*store_->ListJobs({}, 0)), ElementsAre("j-2", "j-1", "j-3"));
  EXPECT_THAT(Ids(*store_->ListJobs({}, 2)), ElementsAre("j-2", "j-1"));
  EXPECT_THAT(Ids(*store_->ListJobs({v1::JOB_STATE_QUEUED}, 0)), ElementsAre("j-2", "j-3"));
  EXPECT_THAT(Ids(*store_->ListJobs({v1::JOB_STATE_RUNNING, v1::JOB_STATE_FAILED}, 5)), ElementsAre("j-1"));
}

TEST_P(JobStoreTest, EventsHaveNoGapsAndAreReadInPages) {
  JobRecord record = NewJob("j-1");
  record.last_sequence = 2;
  QST_ASSERT_OK(store_->CreateJob(record, {Event(1, "a"), Event(2, "b")}));
  record.last_sequence = 4;
  EXPECT_THAT(store_->UpdateJob(record, {Event(4, "d")}, Durability::kSynced), StatusIs(absl::StatusCode::kInternal));
  EXPECT_THAT(store_->UpdateJob(record, {Event(3, "c")}, Durability::kSynced), StatusIs(absl::StatusCode::kInternal));
  // A refused update leaves nothing.
  EXPECT_EQ(store_->GetJob("j-1")->last_sequence, 2u);
  EXPECT_EQ(store_->ListEvents("j-1", 0, 100)->size(), 2u);
  QST_ASSERT_OK(store_->UpdateJob(record, {Event(3, "c"), Event(4, "d")}, Durability::kSynced));
  const auto page = store_->ListEvents("j-1", 1, 2);
  ASSERT_TRUE(page.ok());
  ASSERT_EQ(page->size(), 2u);
  EXPECT_EQ(page->front().message(), "b");
  EXPECT_EQ(page->back().message(), "c");
  EXPECT_THAT(*store_->ListEvents("j-1", 4, 2), IsEmpty());
  EXPECT_THAT(*store_->ListEvents("j-2", 0, 2), IsEmpty());
}

TEST_P(JobStoreTest, DatasetsAreFoundByIdAndByEachName) {
  DatasetRecord record;
  record.dataset.set_id("aa");
  record.dataset.set_file_name("f.csv");
  record.names = {"x", "y"};
  QST_ASSERT_OK(store_->PutDataset(record));
  DatasetRecord other;
  other.dataset.set_id("bb");
  other.names = {"y"};
  EXPECT_THAT(store_->PutDataset(other), StatusIs(absl::StatusCode::kAlreadyExists, HasSubstr("'y'")));
  other.names = {};
  QST_ASSERT_OK(store_->PutDataset(other));
  EXPECT_EQ((*store_->FindDatasetByName("y"))->dataset.file_name(), "f.csv");
  record.names = {"z"};
  QST_ASSERT_OK(store_->PutDataset(record));
  EXPECT_FALSE(store_->FindDatasetByName("x")->has_value());
  EXPECT_THAT((*store_->FindDataset("aa"))->names, ElementsAre("z"));
  EXPECT_EQ(store_->ListDatasets()->size(), 2u);
  EXPECT_EQ(store_->ListDatasets()->front().dataset.id(), "aa");
  QST_ASSERT_OK(store_->DeleteDataset("aa"));
  EXPECT_FALSE(store_->FindDatasetByName("z")->has_value());
  EXPECT_THAT(store_->DeleteDataset("aa"), StatusIs(absl::StatusCode::kNotFound));
}

TEST_P(JobStoreTest, ModelsKeepWhatIsReadyBesideWhatIsPending) {
  ModelRecord record;
  record.name = "m";
  record.pending.emplace().set_source_path("/s");
  record.pending_path = "/p";
  record.pending_worker_id = "w";
  QST_ASSERT_OK(store_->PutModel(record));
  EXPECT_FALSE((*store_->FindModel("m"))->ready.has_value());
  EXPECT_EQ((*store_->FindModel("m"))->pending->source_path(), "/s");
  EXPECT_EQ((*store_->FindModel("m"))->pending_worker_id, "w");
  record.ready.emplace().set_num_layers(6);
  record.pending.reset();
  QST_ASSERT_OK(store_->PutModel(record));
  EXPECT_EQ((*store_->FindModel("m"))->ready->num_layers(), 6u);
  EXPECT_FALSE((*store_->FindModel("m"))->pending.has_value());
  record.name = "a";
  QST_ASSERT_OK(store_->PutModel(record));
  EXPECT_EQ(store_->ListModels()->front().name, "a");
  QST_ASSERT_OK(store_->DeleteModel("m"));
  EXPECT_FALSE(store_->FindModel("m")->has_value());
  EXPECT_THAT(store_->DeleteModel("m"), StatusIs(absl::StatusCode::kNotFound));
}

std::unique_ptr<JobStore> MakeInMemory() { return std::make_unique<InMemoryJobStore>(); }
std::unique_ptr<JobStore> MakeSqlite() { return *SqliteJobStore::Open(NewPath()); }

INSTANTIATE_TEST_SUITE_P(All, JobStoreTest, testing::Values(&MakeInMemory, &MakeSqlite),
                         [](const testing::TestParamInfo<MakeStore>& info) {
                           return info.index == 0 ? "InMemory" : "Sqlite";
                         });

TEST(SqliteJobStoreTest, EverythingIsThereAfterReopening) {
  const std::string path = NewPath();
  {
    auto store = SqliteJobStore::Open(path);
    ASSERT_TRUE(store.ok()) << store.status();
    JobRecord record = NewJob("j-1");
    record.last_sequence = 1;
    QST_ASSERT_OK((*store)->CreateJob(record, {Event(1, "a")}));
  }
  auto store = SqliteJobStore::Open(path);
  ASSERT_TRUE(store.ok()) << store.status();
  EXPECT_EQ((*store)->GetJob("j-1")->last_sequence, 1u);
  EXPECT_EQ((*store)->ListEvents("j-1", 0, 10)->size(), 1u);
}

TEST(SqliteJobStoreTest, TwoCoordinatorsCannotShareAStore) {
  const std::string path = NewPath();
  auto first = SqliteJobStore::Open(path);
  ASSERT_TRUE(first.ok());
  EXPECT_THAT(SqliteJobStore::Open(path),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("is another coordinator using this store?")));
}

TEST(SqliteJobStoreTest, AStoreOfANewerVersionIsRefused) {
  const std::string path = NewPath();
  { ASSERT_TRUE(SqliteJobStore::Open(path).ok()); }
  {
    auto connection = SqliteConnection::Open(path);
    ASSERT_TRUE(connection.ok());
    QST_ASSERT_OK((*connection)->Execute("UPDATE schema_version SET version = 1000"));
  }
  EXPECT_THAT(SqliteJobStore::Open(path),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("schema version 1000")));
}

TEST(SqliteJobStoreTest, AFileThatIsNoDatabaseIsRefused) {
  const std::string path = NewPath();
  std::ofstream(path) << std::string(4096, 'x');
  EXPECT_THAT(SqliteJobStore::Open(path), StatusIs(absl::StatusCode::kDataLoss, HasSubstr(path)));
  EXPECT_THAT(SqliteJobStore::Open("/nonexistent/folder/x.db"), StatusIs(absl::StatusCode::kUnavailable));
}

}  // namespace
}  // namespace qst
