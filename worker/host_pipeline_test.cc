// Real jobs through real parts: a small trained model, its stages and side network, in one process and over Gloo.
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "gtest/gtest.h"
#include "kernels/cuda/device.h"
#include "nlohmann/json.hpp"
#include "proto/support/status_matchers.h"
#include "tests/support/shared_data.h"
#include "worker/checkpoint/import_model.h"
#include "worker/host.h"

namespace qst {
namespace {

using testing::HasSubstr;

constexpr absl::Duration kLong = absl::Seconds(120);
constexpr std::int64_t kLayers = 5;
// Of one worker; on one GPU several find room.
constexpr std::int64_t kGpuBytes = 400'000'000;

// One store for all, as the coordinator keeps one for each plan.
class SharedStore : public KeyValueStore {
 public:
  SharedStore(InMemoryKeyValueStore* store, std::string plan_id) : store_(store), plan_id_(std::move(plan_id)) {}
  absl::Status Set(const std::string& key, const std::string& value) override {
    return store_->Set(plan_id_ + " " + key, value);
  }
  absl::StatusOr<std::string> Get(const std::string& key, absl::Duration timeout) override {
    return store_->Get(plan_id_ + " " + key, timeout);
  }

 private:
  InMemoryKeyValueStore* const store_;
  const std::string plan_id_;
};

// A worker process without its process.
struct FakeWorker {
  FakeWorker(DeviceType type, const std::string& id, InMemoryKeyValueStore* store) : memory(0) {
    ComputeDeviceOptions options;
    if (type == DeviceType::kCuda) {
      options.gpu = 0;
      options.gpu_memory_bytes = kGpuBytes;
    }
    options.isa = ResolveIsa(CpuIsa::kAuto).value();
    device = ComputeDevice::Open(options).value();
    PartContext context;
    context.worker_id = id;
    context.device = device.get();
    context.reports = &reports;
    context.memory = &memory;
    context.make_store = [store](const std::string& plan_id) { return std::make_unique<SharedStore>(store, plan_id); };
    reports.BeginSession();
    host = std::make_unique<Host>(context, MakePart);
  }
  std::unique_ptr<ComputeDevice> device;
  MemoryBudget memory;
  WorkerReports reports;
  std::unique_ptr<Host> host;
};

struct Outcome {
  v1::JobState state = v1::JOB_STATE_UNSPECIFIED;
  std::string message;
  std::vector<std::string> metrics;  // "loss" and "grad_norm", or the evaluation
  std::vector<std::string> messages;
};

class HostPipelineTest : public testing::Test {
 protected:
  void SetUp() override {
    const auto source = SharedDataPath("models/stories260K-hf");
    const auto data = SharedDataPath("glue/sst2/train.tsv");
    if (!source.has_value() || !data.has_value()) GTEST_SKIP() << "no shared data folder";
    source_ = *source;
    data_ = *data;
    folder_ = testing::TempDir() + "/" + testing::UnitTest::GetInstance()->current_test_info()->name();
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
  }

  void Import(bool quantize) {
    ImportOptions options;
    options.source = source_;
    options.destination = folder_ + "/model";
    if (!quantize) options.quantization.reset();
    QST_ASSERT_OK(ImportModel(options, [](std::int64_t, std::int64_t, absl::string_view) { return true; }));
  }

  // stage_workers[i] hosts stage i; side_worker the side network.
  v1::JobPlan MakePlan(const std::string& id, const std::vector<std::string>& stage_workers,
                       const std::string& side_worker) {
    v1::JobPlan plan;
    plan.set_job_id(id);
    plan.set_plan_id(id + "/1");
    const std::int64_t count = static_cast<std::int64_t>(stage_workers.size());
    for (std::int64_t i = 0; i < count; ++i) {
      v1::PlacedStage& stage = *plan.add_stages();
      stage.set_stage(static_cast<std::uint32_t>(i));
      stage.set_worker_id(stage_workers[i]);
      stage.set_first_layer(static_cast<std::uint32_t>(i * kLayers / count));
      stage.set_num_layers(static_cast<std::uint32_t>((i + 1) * kLayers / count - i * kLayers / count));
    }
    plan.set_side_worker_id(side_worker);
    plan.set_model_path(folder_ + "/model");
    plan.set_wire_dtype(wire_dtype_);
    plan.set_compute_dtype(compute_dtype_);
    plan.set_max_passes_in_flight(2);
    plan.set_backbone_batch_tokens(1024);
    plan.set_max_sequence_tokens(64);
    return plan;
  }

  v1::TrainWork MakeWork(const std::string& id) {
    v1::TrainWork work;
    v1::JobSpec& spec = *work.mutable_spec();
    spec.set_name(id);
    spec.set_model("model");
    spec.mutable_side()->set_reduction(4);
    spec.mutable_task()->set_type(v1::TASK_TYPE_CLASSIFICATION);
    spec.mutable_data()->set_max_length(64);
    spec.mutable_data()->set_max_train_examples(96);
    spec.mutable_data()->set_max_eval_examples(32);
    spec.mutable_train()->set_max_steps(8);
    spec.mutable_train()->set_micro_batch_tokens(512);
    spec.mutable_train()->set_backbone_batch_tokens(1024);
    work.set_train_path(data_);
    work.set_eval_path(data_);
    work.set_job_path(folder_ + "/" + id);
    return work;
  }

  std::map<std::string, std::unique_ptr<FakeWorker>>& Start(const v1::JobPlan& plan, const v1::HostPart& side_work) {
    workers_.clear();
    store_ = std::make_unique<InMemoryKeyValueStore>();
    std::vector<v1::HostPart> parts;
    for (int i = 0; i < plan.stages_size(); ++i) {
      parts.emplace_back();
      parts.back().set_stage(static_cast<std::uint32_t>(i));
    }
    parts.push_back(side_work);
    parts.back().set_is_side(true);
    for (v1::HostPart& part : parts) {
      *part.mutable_plan() = plan;
      const std::string id =
          part.is_side() ? plan.side_worker_id() : plan.stages(static_cast<int>(part.stage())).worker_id();
      std::unique_ptr<FakeWorker>& worker = workers_[id];
      if (worker == nullptr) worker = std::make_unique<FakeWorker>(device_, id, store_.get());
      v1::WorkerCommand command;
      *command.mutable_host() = part;
      worker->host->Handle(command);
    }
    return workers_;
  }

  // Follows the job until its final report.
  Outcome Watch(FakeWorker* side, const std::function<void(const v1::JobReport&)>& on_report = nullptr) {
    Outcome outcome;
    const absl::Time deadline = absl::Now() + kLong;
    while (const auto report = side->reports.Take(deadline)) {
      if (!report->has_job()) continue;
      const v1::JobReport& job = report->job();
      if (on_report) on_report(job);
      if (job.has_message()) outcome.messages.push_back(job.message());
      if (!job.metrics_json().empty()) {
        const auto json = nlohmann::json::parse(job.metrics_json());
        outcome.metrics.push_back(json.contains("eval") ? json["eval"].dump()
                                                        : json["loss"].dump() + " " + json["grad_norm"].dump());
      }
      if (job.has_state() && job.state().state() >= v1::JOB_STATE_SUCCEEDED) {
        outcome.state = job.state().state();
        outcome.message = job.state().message();
        return outcome;
      }
    }
    ADD_FAILURE() << "no final report";
    return outcome;
  }

  Outcome Train(const std::string& id, const std::vector<std::string>& stage_workers, const std::string& side_worker,
                const v1::TrainWork& work) {
    v1::HostPart side;
    *side.mutable_train() = work;
    return Watch(Start(MakePlan(id, stage_workers, side_worker), side)[side_worker].get());
  }

  std::string Generate(const std::string& id, const std::vector<std::string>& stage_workers,
                       const std::string& side_worker, const v1::GenerateWork& work, std::vector<std::int32_t>* ids) {
    v1::HostPart side;
    *side.mutable_generate() = work;
    v1::JobPlan plan = MakePlan(id, stage_workers, side_worker);
    plan.set_wire_dtype(v1::WIRE_DTYPE_F32);
    plan.set_max_sequence_tokens(512);
    plan.set_uses_kv_cache(true);
    FakeWorker* const worker = Start(plan, side)[side_worker].get();
    std::string text;
    while (const auto report = worker->reports.Take(absl::Now() + kLong)) {
      if (!report->has_generate()) continue;
      EXPECT_EQ(report->generate().code(), 0) << report->generate().message();
      text += report->generate().response().text();
      for (std::int32_t token : report->generate().response().token_ids()) ids->push_back(token);
      if (report->generate().code() != 0 || !report->generate().response().finish_reason().empty()) break;
    }
    return text;
  }

  // A step's line is "loss grad_norm"; the backbone's numbers have 8 bits or more on a GPU.
  static void ExpectNear(const Outcome& gpu, const Outcome& cpu) {
    ASSERT_EQ(gpu.metrics.size(), cpu.metrics.size());
    int num_steps = 0;
    for (std::size_t i = 0; i < cpu.metrics.size(); ++i) {
      if (cpu.metrics[i].front() == '{') continue;  // an evaluation
      const double expected = std::stod(cpu.metrics[i]);
      EXPECT_NEAR(std::stod(gpu.metrics[i]), expected, 0.03 * (1.0 + std::abs(expected))) << "step " << num_steps;
      ++num_steps;
    }
    EXPECT_GT(num_steps, 0);
  }

  v1::WireDtype wire_dtype_ = v1::WIRE_DTYPE_BF16;
  v1::ComputeDtype compute_dtype_ = v1::COMPUTE_DTYPE_UNSPECIFIED;
  DeviceType device_ = DeviceType::kCpu;
  std::string source_;
  std::string data_;
  std::string folder_;
  std::unique_ptr<InMemoryKeyValueStore> store_;
  std::map<std::string, std::unique_ptr<FakeWorker>> workers_;
};

TEST_F(HostPipelineTest, LossesAreTheSameBitsInOneProcessAndOverTheNetwork) {
  ASSERT_NO_FATAL_FAILURE(Import(true));
  const Outcome alone = Train("alone", {"w0"}, "w0", MakeWork("alone"));
  ASSERT_EQ(alone.state, v1::JOB_STATE_SUCCEEDED) << alone.message;
  EXPECT_EQ(alone.metrics.size(), 10u);  // 8 steps, an evaluation at the end of the epoch and one at the end
  struct Placement {
    std::string name;
    std::vector<std::string> stages;
    std::string side;
  };
  for (const Placement& placement : std::vector<Placement>{{"apart", {"w0"}, "w1"},
                                                           {"two", {"w0", "w1"}, "w2"},
                                                           {"shared", {"w0", "w1"}, "w1"},
                                                           {"three", {"w0", "w1", "w2"}, "w3"}}) {
    const Outcome outcome = Train(placement.name, placement.stages, placement.side, MakeWork(placement.name));
    EXPECT_EQ(outcome.state, v1::JOB_STATE_SUCCEEDED) << outcome.message;
    EXPECT_EQ(outcome.metrics, alone.metrics) << placement.name;
    // Every rank says how much memory it took.
    const std::string said = absl::StrJoin(outcome.messages, "\n");
    for (std::size_t i = 0; i < placement.stages.size(); ++i)
      EXPECT_THAT(said, HasSubstr(absl::StrCat("stage ", i, " on ")));
    EXPECT_THAT(said, HasSubstr("memory: peak"));
  }
  for (const char* file : {"side_network.safetensors", "side_config.json", "metrics.jsonl", "job.yaml"}) {
    EXPECT_TRUE(std::filesystem::exists(folder_ + "/two/results/" + file)) << file;
  }
}

TEST_F(HostPipelineTest, EightBitStatesTrainToTheSameBitsOnAnyPlacement) {
  ASSERT_NO_FATAL_FAILURE(Import(true));
  const Outcome wide = Train("bf16", {"w0"}, "w0", MakeWork("bf16"));
  for (const v1::WireDtype wire_dtype : {v1::WIRE_DTYPE_INT8, v1::WIRE_DTYPE_FP8}) {
    wire_dtype_ = wire_dtype;
    const std::string name = v1::WireDtype_Name(wire_dtype);
    const Outcome alone = Train("alone" + name, {"w0"}, "w0", MakeWork("alone" + name));
    ASSERT_EQ(alone.state, v1::JOB_STATE_SUCCEEDED) << alone.message;
    EXPECT_EQ(alone.metrics.size(), wide.metrics.size());
    EXPECT_NE(alone.metrics, wide.metrics) << name;
    EXPECT_EQ(Train("apart" + name, {"w0", "w1"}, "w2", MakeWork("apart" + name)).metrics, alone.metrics) << name;
  }
}

// Fewer steps and placements than on CPU, whose parts are the same: in the shim every kernel runs on the CPU.
TEST_F(HostPipelineTest, GpuWorkersTrainToTheSameBitsOnAnyPlacementAndReportTheirMemory) {
  if (cuda::Device::Count() == 0) GTEST_SKIP() << "no GPU, or a build without the CUDA backend";
  ASSERT_NO_FATAL_FAILURE(Import(true));
  v1::TrainWork work = MakeWork("cpu");
  work.mutable_spec()->mutable_train()->set_max_steps(2);
  work.mutable_spec()->mutable_data()->set_max_train_examples(16);
  work.mutable_spec()->mutable_data()->set_max_eval_examples(4);
  const Outcome cpu = Train("cpu", {"w0"}, "w0", work);
  ASSERT_EQ(cpu.state, v1::JOB_STATE_SUCCEEDED) << cpu.message;
  device_ = DeviceType::kCuda;
  work.set_job_path(folder_ + "/alone");
  const Outcome alone = Train("alone", {"w0"}, "w0", work);
  ASSERT_EQ(alone.state, v1::JOB_STATE_SUCCEEDED) << alone.message;
  // bf16, unless the job says otherwise.
  ExpectNear(alone, cpu);
  work.set_job_path(folder_ + "/two");
  const Outcome two = Train("two", {"w0", "w1"}, "w1", work);
  ASSERT_EQ(two.state, v1::JOB_STATE_SUCCEEDED) << two.message;
  EXPECT_EQ(two.metrics, alone.metrics);
  const std::string said = absl::StrJoin(two.messages, "\n");
  for (const char* part : {"stage 0 on w0", "stage 1 on w1", "side network on w1"}) EXPECT_THAT(said, HasSubstr(part));
  EXPECT_THAT(said, HasSubstr("of budget 400.0 MB on cuda:0; host: peak"));
}

TEST_F(HostPipelineTest, GpuWorkersComputeInTheTypeOfThePlan) {
  if (cuda::Device::Count() == 0) GTEST_SKIP() << "no GPU, or a build without the CUDA backend";
  ASSERT_NO_FATAL_FAILURE(Import(true));
  v1::TrainWork work = MakeWork("cpu");
  work.mutable_spec()->mutable_train()->set_max_steps(1);
  work.mutable_spec()->mutable_data()->set_max_train_examples(16);
  work.mutable_spec()->mutable_data()->set_max_eval_examples(2);
  const Outcome cpu = Train("cpu", {"w0"}, "w0", work);
  ASSERT_EQ(cpu.state, v1::JOB_STATE_SUCCEEDED) << cpu.message;
  device_ = DeviceType::kCuda;
  std::set<std::vector<std::string>> different;
  for (const v1::ComputeDtype dtype : {v1::COMPUTE_DTYPE_BF16, v1::COMPUTE_DTYPE_F16, v1::COMPUTE_DTYPE_F32}) {
    compute_dtype_ = dtype;
    const std::string name = v1::ComputeDtype_Name(dtype);
    work.set_job_path(folder_ + "/" + name);
    const Outcome outcome = Train(name, {"w0"}, "w0", work);
    ASSERT_EQ(outcome.state, v1::JOB_STATE_SUCCEEDED) << name << ": " << outcome.message;
    ExpectNear(outcome, cpu);
    different.insert(outcome.metrics);
  }
  EXPECT_EQ(different.size(), 3u);
}

TEST_F(HostPipelineTest, GpuWorkersWriteTheSameTextOnAnyPlacement) {
  if (cuda::Device::Count() == 0) GTEST_SKIP() << "no GPU, or a build without the CUDA backend";
  ASSERT_NO_FATAL_FAILURE(Import(false));
  std::ifstream file(source_ + "/greedy_reference.json");
  const auto reference = nlohmann::json::parse(file)["greedy_ids"].get<std::vector<std::int32_t>>();
  device_ = DeviceType::kCuda;
  v1::GenerateWork work;
  work.mutable_request()->set_max_new_tokens(12);
  std::vector<std::int32_t> ids = {1}, ids_apart = {1};
  const std::string text = Generate("g1", {"w0"}, "w0", work, &ids);
  EXPECT_EQ(ids, std::vector<std::int32_t>(reference.begin(), reference.begin() + 13));
  EXPECT_EQ(Generate("g2", {"w0", "w1"}, "w2", work, &ids_apart), text);
  EXPECT_EQ(ids_apart, ids);
}

TEST_F(HostPipelineTest, StageThatDoesNotFitTheGpuSaysWhatItNeeds) {
  if (cuda::Device::Count() == 0) GTEST_SKIP() << "no GPU, or a build without the CUDA backend";
  ASSERT_NO_FATAL_FAILURE(Import(true));
  device_ = DeviceType::kCuda;
  v1::HostPart side;
  *side.mutable_train() = MakeWork("m");
  v1::JobPlan plan = MakePlan("m", {"w0"}, "w1");
  plan.set_backbone_batch_tokens(4'000'000);
  FakeWorker* const worker = Start(plan, side)["w0"].get();
  while (const auto report = worker->reports.Take(absl::Now() + kLong)) {
    if (!report->has_part() || report->part().state() != v1::PART_STATE_FAILED) continue;
    EXPECT_EQ(report->part().code(), static_cast<int>(absl::StatusCode::kResourceExhausted));
    EXPECT_THAT(report->part().message(), HasSubstr("are needed (stage 0: weights "));
    EXPECT_THAT(report->part().message(), HasSubstr("of the budget of 400.0 MB"));
    return;
  }
  ADD_FAILURE() << "the stage did not fail";
}

TEST_F(HostPipelineTest, GreedyTextOfTheUnquantizedModelIsTheReference) {
  ASSERT_NO_FATAL_FAILURE(Import(false));
  std::ifstream file(source_ + "/greedy_reference.json");
  const auto reference = nlohmann::json::parse(file);
  v1::GenerateWork work;
  work.mutable_request()->set_max_new_tokens(200);
  for (const std::vector<std::string>& stages : {std::vector<std::string>{"w9"}, {"w0", "w1"}, {"w0", "w1", "w2"}}) {
    std::vector<std::int32_t> ids = {1};
    const std::string text = Generate(absl::StrCat("g", stages.size()), stages, "w9", work, &ids);
    EXPECT_EQ(ids, reference["greedy_ids"].get<std::vector<std::int32_t>>()) << stages.size() << " stages";
    EXPECT_EQ(text, reference["text"].get<std::string>()) << stages.size() << " stages";
  }
}

TEST_F(HostPipelineTest, FinetunedModelWritesTheSameTextOnAnyPlacement) {
  ASSERT_NO_FATAL_FAILURE(Import(true));
  v1::TrainWork work = MakeWork("lm");
  work.mutable_spec()->mutable_task()->set_type(v1::TASK_TYPE_CAUSAL_LM);
  work.mutable_spec()->mutable_train()->set_learning_rate(1e-3);
  ASSERT_EQ(Train("lm", {"w0"}, "w0", work).state, v1::JOB_STATE_SUCCEEDED);
  v1::GenerateWork generate;
  generate.mutable_request()->set_prompt("a good movie");
  generate.mutable_request()->set_max_new_tokens(24);
  generate.mutable_request()->set_temperature(0.7);
  generate.set_side_network_path(folder_ + "/lm/results");
  std::vector<std::int32_t> ids, ids_apart;
  const std::string text = Generate("g1", {"w0"}, "w0", generate, &ids);
  EXPECT_EQ(Generate("g2", {"w0", "w1"}, "w2", generate, &ids_apart), text);
  EXPECT_EQ(ids, ids_apart);
  EXPECT_FALSE(text.empty());
}

TEST_F(HostPipelineTest, CancelledJobEndsCancelled) {
  ASSERT_NO_FATAL_FAILURE(Import(true));
  v1::TrainWork work = MakeWork("c");
  work.mutable_spec()->mutable_train()->set_max_steps(1000000);
  v1::HostPart side;
  *side.mutable_train() = work;
  FakeWorker* const worker = Start(MakePlan("c", {"w0", "w1"}, "w2"), side)["w2"].get();
  const Outcome outcome = Watch(worker, [&](const v1::JobReport& report) {
    if (report.metrics_json().empty()) return;
    v1::WorkerCommand cancel;
    cancel.mutable_cancel()->set_plan_id("c/1");
    worker->host->Handle(cancel);
  });
  EXPECT_EQ(outcome.state, v1::JOB_STATE_CANCELLED);
}

TEST_F(HostPipelineTest, StagesThatAreLostAndPlacedAgainChangeNoBit) {
  ASSERT_NO_FATAL_FAILURE(Import(true));
  for (const DeviceType device : {DeviceType::kCpu, DeviceType::kCuda}) {
    if (device == DeviceType::kCuda && cuda::Device::Count() == 0) continue;
    device_ = device;
    const std::string name = device == DeviceType::kCpu ? "cpu" : "cuda";
    v1::TrainWork work = MakeWork("undisturbed-" + name);
    if (device == DeviceType::kCuda) {
      work.mutable_spec()->mutable_train()->set_max_steps(4);
      work.mutable_spec()->mutable_data()->set_max_train_examples(16);
      work.mutable_spec()->mutable_data()->set_max_eval_examples(4);
    }
    work.mutable_spec()->mutable_train()->set_batch_size(8);
    const Outcome undisturbed = Train("undisturbed-" + name, {"w0"}, "w0", work);
    ASSERT_EQ(undisturbed.state, v1::JOB_STATE_SUCCEEDED) << undisturbed.message;

    // Stage 1's worker is lost, then stage 0's; at last all is in the side network's process.
    const std::string id = "disturbed-" + name;
    work.set_job_path(folder_ + "/" + id);
    v1::HostPart side;
    *side.mutable_train() = work;
    v1::JobPlan plan = MakePlan(id, {"w0", "w1"}, "w2");
    auto& workers = Start(plan, side);
    const auto replace = [&](const std::string& lost, const std::vector<std::string>& stage_workers, int revision) {
      const std::string old_plan_id = plan.plan_id();
      workers[lost].reset();
      plan = MakePlan(id, stage_workers, "w2");
      plan.set_plan_id(absl::StrCat(id, "/1.", revision));
      v1::WorkerCommand release;
      release.mutable_release()->set_plan_id(old_plan_id);
      for (auto& [worker_id, worker] : workers) {
        if (worker != nullptr && worker_id != "w2") worker->host->Handle(release);
      }
      v1::WorkerCommand attach;
      attach.mutable_attach()->set_plan_id(old_plan_id);
      *attach.mutable_attach()->mutable_plan() = plan;
      workers["w2"]->host->Handle(attach);
      for (int i = 0; i < plan.stages_size(); ++i) {
        std::unique_ptr<FakeWorker>& worker = workers[plan.stages(i).worker_id()];
        if (worker == nullptr) worker = std::make_unique<FakeWorker>(device_, stage_workers[i], store_.get());
        v1::WorkerCommand command;
        *command.mutable_host()->mutable_plan() = plan;
        command.mutable_host()->set_stage(i);
        worker->host->Handle(command);
      }
    };
    int num_lines = 0;
    const Outcome outcome = Watch(workers["w2"].get(), [&](const v1::JobReport& report) {
      EXPECT_EQ(report.plan_id(), id + "/1");
      if (report.metrics_json().empty()) return;
      ++num_lines;
      if (num_lines == 1) replace("w1", {"w0", "w3"}, 1);
      if (num_lines == 2) replace("w0", {"w2", "w3"}, 2);
      if (num_lines == 3) replace("w3", {"w2", "w2"}, 3);
    });
    EXPECT_EQ(outcome.state, v1::JOB_STATE_SUCCEEDED) << outcome.message;
    EXPECT_EQ(outcome.metrics, undisturbed.metrics) << name;
    const std::vector<v1::HostedPart> hosted = workers["w2"]->host->Hosted();
    for (const v1::HostedPart& part : hosted) EXPECT_EQ(part.plan_id(), id + "/1.3");
    EXPECT_EQ(hosted.size(), 3u);
  }
}

TEST_F(HostPipelineTest, ASideNetworkWithoutStagesSaysSoWaitsAndCanBeCancelled) {
  ASSERT_NO_FATAL_FAILURE(Import(true));
  v1::TrainWork work = MakeWork("l");
  work.mutable_spec()->mutable_train()->set_max_steps(1000000);
  v1::HostPart side;
  *side.mutable_train() = work;
  auto& workers = Start(MakePlan("l", {"w0", "w1"}, "w2"), side);
  bool is_dropped = false;
  v1::PartReport detached;
  FakeWorker* const side_worker = workers["w2"].get();
  while (const auto report = side_worker->reports.Take(absl::Now() + kLong)) {
    if (!report->job().metrics_json().empty() && !is_dropped) {
      is_dropped = true;
      workers["w1"].reset();
    }
    if (report->part().state() != v1::PART_STATE_DETACHED) continue;
    detached = report->part();
    v1::WorkerCommand cancel;
    cancel.mutable_cancel()->set_plan_id("l/1");
    side_worker->host->Handle(cancel);
    break;
  }
  EXPECT_TRUE(detached.part().is_side());
  EXPECT_EQ(detached.part().plan_id(), "l/1");
  EXPECT_THAT(detached.message(), HasSubstr("stage 1 on worker w1"));
  EXPECT_EQ(Watch(side_worker).state, v1::JOB_STATE_CANCELLED);
}

TEST_F(HostPipelineTest, WrongDataFailsTheJobWithFileAndLine) {
  ASSERT_NO_FATAL_FAILURE(Import(true));
  const std::string path = folder_ + "/train.jsonl";
  std::ofstream(path) << "{\"text\": \"a\", \"label\": \"x\"}\n{\"text\": broken\n";
  v1::TrainWork work = MakeWork("d");
  work.set_train_path(path);
  work.clear_eval_path();
  const Outcome outcome = Train("d", {"w0"}, "w1", work);
  EXPECT_EQ(outcome.state, v1::JOB_STATE_FAILED);
  EXPECT_THAT(outcome.message, HasSubstr("train.jsonl line 2"));
}

}  // namespace
}  // namespace qst
