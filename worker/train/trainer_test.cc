#include "worker/train/trainer.h"

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "kernels/testing/test_memory.h"
#include "nlohmann/json.hpp"
#include "proto/support/status_matchers.h"
#include "worker/side/random.h"
#include "worker/testing/test_device.h"
#include "worker/train/results.h"
#include "worker/train/testing/fake_hidden_state_stream.h"

namespace qst {
namespace {

using testing::HasSubstr;

constexpr std::int64_t kVocab = 23;
constexpr std::int64_t kHidden = 16;
constexpr std::int64_t kLayers = 2;

std::string ReadFile(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  EXPECT_TRUE(in.good()) << path;
  std::ostringstream out;
  out << in.rdbuf();
  return out.str();
}

// Chains in which each token follows from the one before, from which classes and numbers follow, too.
std::vector<EncodedExample> MakeExamples(int num, const SideNetworkConfig& side, std::uint64_t seed) {
  Random random(seed, "examples");
  std::vector<EncodedExample> out;
  for (int i = 0; i < num; ++i) {
    EncodedExample example;
    const int length = 2 + static_cast<int>(random.Next() % 9);
    auto token = static_cast<std::int32_t>(random.Next() % kVocab);
    for (int t = 0; t < length; ++t) {
      example.tokens.push_back(token);
      token = (token * 3 + 1) % kVocab;
    }
    if (side.is_classification()) {
      example.label = static_cast<std::int32_t>(example.tokens.back() % side.num_classes());
    } else if (side.is_regression()) {
      example.value = static_cast<float>(example.tokens.back() % 3) - 0.5f;
    } else {
      example.target_mask.assign(length, 1);
      example.target_mask[0] = 0;
      if (length > 4) example.target_mask[1] = 0;  // a prompt
    }
    example.line = i + 1;
    out.push_back(example);
  }
  return out;
}

class TrainerTest : public DeviceTest {
 protected:
  TrainerTest() : ops_(ctx_), norm_(kHidden, 1.0f), lm_head_(kVocab * kHidden) {
    Random random(5, "head");
    for (float& value : lm_head_) value = random.Symmetric(0.5f);
    folder_ = absl::StrCat(testing::TempDir(), "/trainer_test_", getpid(), "_", TestDeviceName(GetParam()));
    std::filesystem::remove_all(folder_);
    SetTask(v1::TASK_TYPE_CAUSAL_LM);
    options_.settings.max_steps = 12;
    options_.settings.batch_size = 8;
    options_.settings.micro_batch_tokens = 24;
    options_.settings.backbone_batch_tokens = 100;
    options_.settings.learning_rate = 3e-3;
    options_.settings.eval_every_steps = 5;
    options_.settings.checkpoint_every_steps = 3;
    callbacks_.on_metrics = [this](const std::string& line) { lines_.push_back(nlohmann::json::parse(line)); };
    callbacks_.on_message = [this](const std::string& message) { messages_.push_back(message); };
  }
  ~TrainerTest() override { std::filesystem::remove_all(folder_); }

  void SetTask(v1::TaskType task, v1::SidePreset preset = v1::SIDE_PRESET_TUNED) {
    BackboneDims dims;
    dims.num_layers = kLayers;
    dims.hidden_size = kHidden;
    dims.intermediate_size = 32;
    dims.num_heads = 2;
    dims.num_kv_heads = 1;
    dims.vocab_size = kVocab;
    v1::SideConfig side;
    side.set_preset(preset);
    side.set_reduction(2);
    side.set_rank(4);
    auto config = ResolveSideConfig(side, task, {"a", "b", "c"}, dims);
    QST_EXPECT_OK(config);
    options_.side = *config;
  }

  FrozenHead Frozen() const {
    FrozenHead frozen;
    frozen.final_norm = Matrix(norm_.data(), 1, kHidden);
    if (!options_.side.has_score_head()) {
      frozen.lm_head = WeightView::Dense(Matrix(lm_head_.data(), kVocab, kHidden));
    }
    return frozen;
  }

  // Trains in `name` below the test's folder; keeps the metric lines in lines_.
  absl::Status Train(const std::string& name) {
    lines_.clear();
    messages_.clear();
    stream_options_.ctx = ops_;
    stream_options_.num_layers = kLayers;
    stream_options_.hidden_size = kHidden;
    stream_options_.vocab_size = kVocab;
    stream_options_.max_passes_in_flight = options_.settings.max_passes_in_flight;
    stream_ = std::make_unique<FakeHiddenStateStream>(stream_options_);
    options_.job_folder = folder_ + "/" + name;
    const v1::TaskType task = options_.side.task;
    auto trainer =
        Trainer::Create(options_, Frozen(), ExampleSet(task, MakeExamples(60, options_.side, 1)),
                        ExampleSet(task, MakeExamples(20, options_.side, 2)), stream_.get(), ops_, callbacks_);
    if (!trainer.ok()) return trainer.status();
    trainer_ = *std::move(trainer);
    return trainer_->Run();
  }

  // What must be the same to the last bit: losses, norms and evaluations, as printed.
  std::string Curve() const {
    std::string out;
    for (const nlohmann::json& line : lines_) {
      if (line.contains("eval")) {
        absl::StrAppend(&out, line["step"].dump(), " eval ", line["eval"].dump(), "\n");
      } else {
        absl::StrAppend(&out, line["step"].dump(), " ", line["loss"].dump(), " ", line["grad_norm"].dump(), " ",
                        line["lr"].dump(), " ", line["tokens"].dump(), "\n");
      }
    }
    return out;
  }
  std::string NetworkBytes(const std::string& name) const {
    return ReadFile(absl::StrCat(folder_, "/", name, "/results/", kSideNetworkFile));
  }
  std::vector<double> EvalValues(const char* metric) const {
    std::vector<double> out;
    for (const nlohmann::json& line : lines_) {
      if (line.contains("eval")) out.push_back(line["eval"][metric]);
    }
    return out;
  }

  OpContext ops_;
  TestVector<float> norm_;
  TestVector<float> lm_head_;
  std::string folder_;
  TrainerOptions options_;
  FakeHiddenStateStream::Options stream_options_;
  TrainerCallbacks callbacks_;
  std::unique_ptr<FakeHiddenStateStream> stream_;
  std::unique_ptr<Trainer> trainer_;
  std::vector<nlohmann::json> lines_;
  std::vector<std::string> messages_;
};

TEST_P(TrainerTest, LanguageModelLearnsFromTheUntouchedModelOn) {
  options_.settings.max_steps = 60;
  options_.settings.eval_every_steps = 30;
  QST_ASSERT_OK(Train("job"));
  const std::vector<double> losses = EvalValues("loss");
  ASSERT_EQ(losses.size(), 3u);  // before, in the middle, at the end
  EXPECT_LT(losses[2], losses[1]);
  EXPECT_LT(losses[2], 0.5 * losses[0]);
  EXPECT_EQ(stream_->num_in_flight(), 0u);
  EXPECT_NEAR(std::log(EvalValues("perplexity")[2]), losses[2], 1e-6);
}

TEST_P(TrainerTest, ClassifierLearnsAndWritesPredictions) {
  SetTask(v1::TASK_TYPE_CLASSIFICATION);
  options_.settings.max_steps = 80;
  options_.settings.eval_every_steps = 0;
  options_.settings.learning_rate = 1e-2;
  QST_ASSERT_OK(Train("job"));
  EXPECT_GT(EvalValues("accuracy").back(), 0.8);
  EXPECT_EQ(trainer_->last_eval().at("accuracy"), EvalValues("accuracy").back());
  std::istringstream in(ReadFile(folder_ + "/job/results/predictions.jsonl"));
  int num = 0;
  int num_correct = 0;
  for (std::string text; std::getline(in, text); ++num) {
    const nlohmann::json line = nlohmann::json::parse(text);
    EXPECT_EQ(line["line"], num + 1);
    double sum = 0.0;
    double top = 0.0;
    for (const auto& item : line["probabilities"].items()) {
      sum += item.value().get<double>();
      top = std::max(top, item.value().get<double>());
    }
    EXPECT_NEAR(sum, 1.0, 1e-5);
    EXPECT_EQ(line["probabilities"][line["prediction"].get<std::string>()], top);
    num_correct += line["prediction"] == line["label"];
  }
  EXPECT_EQ(num, 20);
  EXPECT_DOUBLE_EQ(num_correct / 20.0, EvalValues("accuracy").back());
}

TEST_P(TrainerTest, RegressionLearnsAndWritesItsNumbers) {
  SetTask(v1::TASK_TYPE_REGRESSION);
  options_.settings.max_steps = 80;
  options_.settings.eval_every_steps = 40;
  options_.settings.learning_rate = 1e-2;
  QST_ASSERT_OK(Train("job"));
  const std::vector<double> mse = EvalValues("mse");
  EXPECT_EQ(mse, EvalValues("loss"));
  EXPECT_LT(mse.back(), 0.5 * mse.front());
  EXPECT_GT(EvalValues("pearson").back(), 0.7);
  EXPECT_GT(EvalValues("spearman").back(), 0.6);
  std::istringstream in(ReadFile(folder_ + "/job/results/predictions.jsonl"));
  double sum = 0.0;
  int num = 0;
  for (std::string text; std::getline(in, text); ++num) {
    const nlohmann::json line = nlohmann::json::parse(text);
    EXPECT_FALSE(line.contains("probabilities"));
    const double difference = line["prediction"].get<double>() - line["label"].get<double>();
    sum += difference * difference;
  }
  EXPECT_EQ(num, 20);
  EXPECT_NEAR(sum / num, mse.back(), 1e-5);
  // What resumes goes on with the same numbers.
  const std::string whole = Curve();
  callbacks_.on_progress = [this](const v1::JobProgress& p) {
    if (p.step() == 7) trainer_->Cancel();
  };
  EXPECT_THAT(Train("resumed"), StatusIs(absl::StatusCode::kCancelled));
  callbacks_.on_progress = nullptr;
  QST_ASSERT_OK(Train("resumed"));
  EXPECT_TRUE(absl::EndsWith(whole, Curve()));
  EXPECT_EQ(NetworkBytes("resumed"), NetworkBytes("job"));
}

TEST_P(TrainerTest, TwoClassesHaveF1AndMatthewsCorrelation) {
  SetTask(v1::TASK_TYPE_CLASSIFICATION);
  QST_ASSERT_OK(Train("three"));
  EXPECT_TRUE(trainer_->last_eval().count("accuracy"));
  EXPECT_FALSE(trainer_->last_eval().count("f1"));
  options_.side.labels = {"a", "b"};
  options_.settings.max_steps = 80;
  options_.settings.learning_rate = 1e-2;
  QST_ASSERT_OK(Train("two"));
  double right_yes = 0, right_no = 0, wrong_yes = 0, wrong_no = 0;
  std::istringstream in(ReadFile(folder_ + "/two/results/predictions.jsonl"));
  for (std::string text; std::getline(in, text);) {
    const nlohmann::json line = nlohmann::json::parse(text);
    const bool is_yes = line["prediction"] == "b";
    const bool is_right = line["prediction"] == line["label"];
    (is_yes ? (is_right ? right_yes : wrong_yes) : (is_right ? right_no : wrong_no)) += 1;
  }
  EXPECT_GT(right_yes, 0);
  EXPECT_NEAR(EvalValues("f1").back(), 2 * right_yes / (2 * right_yes + wrong_yes + wrong_no), 1e-8);
  EXPECT_NEAR(
      EvalValues("matthews").back(),
      (right_yes * right_no - wrong_yes * wrong_no) /
          std::sqrt((right_yes + wrong_yes) * (right_yes + wrong_no) * (right_no + wrong_yes) * (right_no + wrong_no)),
      1e-8);
}

TEST_P(TrainerTest, ProbeReadsOnlyTheLastLayer) {
  SetTask(v1::TASK_TYPE_CLASSIFICATION, v1::SIDE_PRESET_PROBE);
  options_.settings.learning_rate = 3e-2;
  options_.settings.max_steps = 40;
  QST_ASSERT_OK(Train("job"));
  EXPECT_EQ(stream_->lowest_layer_asked(), kLayers);
  EXPECT_LT(EvalValues("loss").back(), EvalValues("loss").front());
}

TEST_P(TrainerTest, ALinearProbeBesideTheNetworkIsTheProbeTrainedAloneAndDisturbsNothing) {
  SetTask(v1::TASK_TYPE_CLASSIFICATION);
  options_.settings.learning_rate = 1e-2;
  QST_ASSERT_OK(Train("without"));
  const std::vector<double> losses = EvalValues("loss");
  SetTask(v1::TASK_TYPE_CLASSIFICATION, v1::SIDE_PRESET_PROBE);
  QST_ASSERT_OK(Train("alone"));
  const std::vector<double> alone = EvalValues("accuracy");
  SetTask(v1::TASK_TYPE_CLASSIFICATION);
  options_.settings.linear_probe = true;
  QST_ASSERT_OK(Train("beside"));
  EXPECT_EQ(EvalValues("loss"), losses);
  EXPECT_EQ(EvalValues("probe_accuracy"), alone);
  EXPECT_EQ(NetworkBytes("beside"), NetworkBytes("without"));

  // Its state is part of the checkpoint.
  callbacks_.on_progress = [this](const v1::JobProgress& p) {
    if (p.step() == 7) trainer_->Cancel();
  };
  EXPECT_THAT(Train("resumed"), StatusIs(absl::StatusCode::kCancelled));
  callbacks_.on_progress = nullptr;
  QST_ASSERT_OK(Train("resumed"));
  EXPECT_EQ(EvalValues("probe_accuracy").back(), alone.back());
}

TEST_P(TrainerTest, GroupingIntoPassesDoesNotChangeABit) {
  QST_ASSERT_OK(Train("small"));
  const std::string expected = Curve();
  const std::uint64_t num_passes = stream_->num_submitted();
  EXPECT_LE(stream_->longest_pass_tokens(), 100);
  options_.settings.backbone_batch_tokens = 4096;
  options_.settings.max_passes_in_flight = 3;
  QST_ASSERT_OK(Train("large"));
  EXPECT_EQ(Curve(), expected);
  EXPECT_LT(stream_->num_submitted(), num_passes);
  options_.settings.backbone_batch_tokens = 1;
  options_.settings.max_passes_in_flight = 1;
  QST_ASSERT_OK(Train("lockstep"));
  EXPECT_EQ(Curve(), expected);
  EXPECT_GT(stream_->num_submitted(), num_passes);
  EXPECT_EQ(NetworkBytes("small"), NetworkBytes("large"));
  EXPECT_EQ(NetworkBytes("small"), NetworkBytes("lockstep"));
}

TEST_P(TrainerTest, ThreadsDoNotChangeABit) {
  QST_ASSERT_OK(Train("two"));
  const std::string expected = Curve();
  ThreadPool one(1);
  ops_.threads = &one;
  QST_ASSERT_OK(Train("one"));
  EXPECT_EQ(Curve(), expected);
  ThreadPool five(5);
  ops_.threads = &five;
  QST_ASSERT_OK(Train("five"));
  EXPECT_EQ(Curve(), expected);
  EXPECT_EQ(NetworkBytes("one"), NetworkBytes("five"));
}

TEST_P(TrainerTest, CancelStopsAtTheNextMicroBatch) {
  callbacks_.on_progress = [this](const v1::JobProgress& progress) {
    if (progress.step() == 4) trainer_->Cancel();
  };
  EXPECT_THAT(Train("job"), StatusIs(absl::StatusCode::kCancelled));
  EXPECT_EQ(lines_.back()["step"], 4);
  EXPECT_FALSE(std::filesystem::exists(folder_ + "/job/results/" + kSideNetworkFile));
}

// A run that ends after step 7 and one that goes on from its last checkpoint, that of step 6.
TEST_P(TrainerTest, ResumedRunEqualsAnUninterruptedOneToTheLastBit) {
  QST_ASSERT_OK(Train("whole"));
  const std::string expected = Curve();
  callbacks_.on_progress = [this](const v1::JobProgress& p) {
    if (p.step() == 7) trainer_->Cancel();
  };
  EXPECT_THAT(Train("resumed"), StatusIs(absl::StatusCode::kCancelled));
  callbacks_.on_progress = nullptr;
  QST_ASSERT_OK(Train("resumed"));
  ASSERT_EQ(messages_.size(), 1u);
  EXPECT_EQ(messages_[0], "resuming after step 6 of 12");
  EXPECT_EQ(lines_[0]["step"], 7);
  EXPECT_EQ(NetworkBytes("resumed"), NetworkBytes("whole"));

  // The file holds every line once, cut at the checkpoint and written on.
  lines_.clear();
  std::istringstream in(ReadFile(folder_ + "/resumed/results/metrics.jsonl"));
  for (std::string text; std::getline(in, text);) lines_.push_back(nlohmann::json::parse(text));
  EXPECT_EQ(Curve(), expected);
}

TEST_P(TrainerTest, ResumingAFinishedRunOnlyWritesTheResultsAgain) {
  QST_ASSERT_OK(Train("job"));
  const std::string network = NetworkBytes("job");
  std::filesystem::remove(folder_ + "/job/results/" + kSideNetworkFile);
  QST_ASSERT_OK(Train("job"));
  EXPECT_EQ(stream_->num_submitted(), 0u);
  EXPECT_EQ(NetworkBytes("job"), network);
}

TEST_P(TrainerTest, ADamagedCheckpointIsPassedOverForAnOlderOne) {
  QST_ASSERT_OK(Train("whole"));
  const std::string network = NetworkBytes("whole");
  for (const char* file : {"state.safetensors", "trainer_state.json"}) {
    SCOPED_TRACE(file);
    const std::string job = absl::StrCat("job ", file);
    callbacks_.on_progress = [this](const v1::JobProgress& p) {
      if (p.step() == 7) trainer_->Cancel();
    };
    EXPECT_THAT(Train(job), StatusIs(absl::StatusCode::kCancelled));
    callbacks_.on_progress = nullptr;
    const std::string path = absl::StrCat(folder_, "/", job, "/checkpoints/step-6/", file);
    {  // One bit in the middle.
      std::string bytes = ReadFile(path);
      bytes[bytes.size() / 2] ^= 1;
      std::ofstream(path, std::ios::binary) << bytes;
    }
    QST_ASSERT_OK(Train(job));
    ASSERT_EQ(messages_.size(), 2u);
    EXPECT_THAT(messages_[0], HasSubstr("checkpoint of step 6 is damaged"));
    EXPECT_EQ(messages_[1], "resuming after step 3 of 12");
    EXPECT_EQ(NetworkBytes(job), network);
  }
}

TEST_P(TrainerTest, ACheckpointThatWasCutShortIsPassedOver) {
  callbacks_.on_progress = [this](const v1::JobProgress& p) {
    if (p.step() == 4) trainer_->Cancel();
  };
  EXPECT_THAT(Train("job"), StatusIs(absl::StatusCode::kCancelled));
  callbacks_.on_progress = nullptr;
  const std::string path = folder_ + "/job/checkpoints/step-3/state.safetensors";
  std::filesystem::resize_file(path, std::filesystem::file_size(path) / 2);
  std::filesystem::create_directories(folder_ + "/job/checkpoints/.incomplete-step-9");
  QST_ASSERT_OK(Train("job"));
  EXPECT_THAT(messages_.at(0), HasSubstr("checkpoint of step 3 is damaged"));
  EXPECT_EQ(lines_[0]["step"], 0);  // there was no older one: from the start
  EXPECT_FALSE(std::filesystem::exists(folder_ + "/job/checkpoints/.incomplete-step-9"));
}

TEST_P(TrainerTest, ResumesWithoutItsOldMetrics) {
  QST_ASSERT_OK(Train("whole"));
  callbacks_.on_progress = [this](const v1::JobProgress& p) {
    if (p.step() == 7) trainer_->Cancel();
  };
  EXPECT_THAT(Train("job"), StatusIs(absl::StatusCode::kCancelled));
  callbacks_.on_progress = nullptr;
  std::filesystem::remove(folder_ + "/job/results/metrics.jsonl");
  QST_ASSERT_OK(Train("job"));
  EXPECT_THAT(messages_.at(1), HasSubstr("earlier metrics are lost"));
  EXPECT_EQ(NetworkBytes("job"), NetworkBytes("whole"));
}

TEST_P(TrainerTest, KeepsTheNewestCheckpoints) {
  options_.settings.save_initial = true;
  options_.settings.checkpoint_every_steps = 5;
  options_.settings.checkpoint_keep = 3;
  QST_ASSERT_OK(Train("job"));
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(folder_ + "/job/checkpoints")) {
    names.push_back(entry.path().filename().string());
  }
  EXPECT_THAT(names, testing::UnorderedElementsAre("step-5", "step-10", "step-12"));
}

TEST_P(TrainerTest, RefusesACheckpointOfOtherSettings) {
  QST_ASSERT_OK(Train("job"));
  options_.settings.learning_rate *= 2;
  EXPECT_THAT(Train("job"), StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("other settings or data")));
}

TEST_P(TrainerTest, StopsWhereTheLossIsNotFinite) {
  stream_options_.nan_layer = 1;
  stream_options_.nan_from_pass = 3;
  EXPECT_THAT(Train("job"),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("in the backbone's hidden state of layer 1")));
}

TEST_P(TrainerTest, PassesOnTheLossOfAStage) {
  stream_options_.lost_at_pass = 2;
  EXPECT_THAT(Train("job"), StatusIs(absl::StatusCode::kUnavailable, HasSubstr("stage 1 was lost")));
}

TEST_P(TrainerTest, MetricLinesHaveTheirFields) {
  options_.settings.log_every_steps = 5;
  QST_ASSERT_OK(Train("job"));
  std::vector<int> steps;
  for (const nlohmann::json& line : lines_) {
    if (line.contains("eval")) continue;
    steps.push_back(line["step"]);
    for (const char* field : {"epoch", "loss", "lr", "grad_norm", "tokens", "tokens_per_second", "elapsed_s",
                              "device_memory_bytes", "cache_hit_ratio", "wait_s", "side_s", "optimizer_s"}) {
      EXPECT_TRUE(line[field].is_number()) << field;
    }
    EXPECT_GT(line["device_memory_bytes"], 1 << 20);
    EXPECT_GT(line["tokens_per_second"], 0.0);
  }
  EXPECT_THAT(steps, testing::ElementsAre(5, 10, 12));
  EXPECT_EQ(ReadFile(folder_ + "/job/results/metrics.jsonl").empty(), false);
}

TEST_P(TrainerTest, ReportsItsStatesInOrder) {
  std::string states;
  callbacks_.on_state = [&](TrainerCallbacks::State state) {
    states += state == TrainerCallbacks::State::kRunning ? 'R' : 'E';
  };
  QST_ASSERT_OK(Train("job"));
  EXPECT_EQ(states, "ERERERE");  // before the first step, after 5, 10 and 12
}

TEST_P(TrainerTest, SavedNetworkComesBackTheSame) {
  QST_ASSERT_OK(Train("job"));
  const std::string folder = folder_ + "/job/results";
  const auto network = LoadSideNetwork(ops_, folder, options_.side.backbone, Frozen());
  QST_ASSERT_OK(network);
  const auto expected = trainer_->network().parameters().Download(ParameterBuffer::kValues);
  const auto actual = (*network)->parameters().Download(ParameterBuffer::kValues);
  QST_ASSERT_OK(expected);
  QST_ASSERT_OK(actual);
  EXPECT_EQ(*expected, *actual);
  BackboneDims other = options_.side.backbone;
  other.num_layers = 3;
  EXPECT_THAT(LoadSideNetwork(ops_, folder, other, Frozen()),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("trained for a model with")));
  EXPECT_THAT(LoadSideNetwork(ops_, folder_, options_.side.backbone, Frozen()), StatusIs(absl::StatusCode::kNotFound));
}

TEST_P(TrainerTest, RefusesExamplesThatDoNotFit) {
  FakeHiddenStateStream stream{FakeHiddenStateStream::Options()};
  options_.job_folder = folder_;
  const auto create = [&](std::vector<EncodedExample> examples) {
    return Trainer::Create(options_, Frozen(), ExampleSet(options_.side.task, std::move(examples)),
                           ExampleSet(options_.side.task, {}), &stream, ops_, {})
        .status();
  };
  const auto code = absl::StatusCode::kInvalidArgument;
  EXPECT_THAT(create({}), StatusIs(code, HasSubstr("no examples")));
  EncodedExample example;
  example.line = 7;
  EXPECT_THAT(create({example}), StatusIs(code, HasSubstr("training example 0 (line 7): has no tokens")));
  example.tokens = {1, 23};
  example.target_mask = {0, 1};
  EXPECT_THAT(create({example}), StatusIs(code, HasSubstr("token 23 is outside the vocabulary of 23")));
  example.tokens = {1, 2};
  example.target_mask = {0};
  EXPECT_THAT(create({example}), StatusIs(code, HasSubstr("target mask has 1 entries")));
  SetTask(v1::TASK_TYPE_CLASSIFICATION);
  example.label = 3;
  EXPECT_THAT(create({example}), StatusIs(code, HasSubstr("class 3 is outside the 3 labels")));
}

// On two devices: float32 everywhere, so that only the order of sums tells them apart.
class TrainerDevicesTest : public TrainerTest {
 protected:
  void SetUp() override { QST_SKIP_WITHOUT_DEVICE(DeviceType::kCuda); }
  void UseDevice(DeviceType device) { ops_ = TestDeviceContext(device, &threads_); }
  // Values of one field of all lines that have it.
  std::vector<double> Field(const char* name) const {
    std::vector<double> out;
    for (const nlohmann::json& line : lines_) {
      if (line.contains(name)) out.push_back(line[name]);
    }
    return out;
  }
  static void ExpectNear(const std::vector<double>& expected, const std::vector<double>& actual, double relative) {
    ASSERT_EQ(expected.size(), actual.size());
    for (std::size_t i = 0; i < expected.size(); ++i) {
      EXPECT_NEAR(expected[i], actual[i], relative * std::abs(expected[i])) << i;
    }
  }
};

TEST_P(TrainerDevicesTest, LossCurvesOfGpuAndCpuAgree) {
  options_.settings.max_steps = 30;
  UseDevice(DeviceType::kCpu);
  QST_ASSERT_OK(Train("cpu"));
  const std::vector<double> losses = Field("loss");
  const std::vector<double> norms = Field("grad_norm");
  const std::vector<double> evals = EvalValues("loss");
  UseDevice(DeviceType::kCuda);
  QST_ASSERT_OK(Train("cuda"));
  ExpectNear(losses, Field("loss"), 1e-4);
  ExpectNear(norms, Field("grad_norm"), 1e-2);
  ExpectNear(evals, EvalValues("loss"), 1e-4);
}

// The parameter is the device that writes the checkpoint; the other one goes on from it.
TEST_P(TrainerDevicesTest, ACheckpointOfOneDeviceIsResumedOnTheOther) {
  const DeviceType first = GetParam();
  const DeviceType second = first == DeviceType::kCpu ? DeviceType::kCuda : DeviceType::kCpu;
  UseDevice(first);
  QST_ASSERT_OK(Train("whole"));
  const std::vector<double> losses = Field("loss");
  callbacks_.on_progress = [this](const v1::JobProgress& p) {
    if (p.step() == 7) trainer_->Cancel();
  };
  EXPECT_THAT(Train("moved"), StatusIs(absl::StatusCode::kCancelled));
  callbacks_.on_progress = nullptr;
  UseDevice(second);
  QST_ASSERT_OK(Train("moved"));
  EXPECT_EQ(messages_.at(0), "resuming after step 6 of 12");
  ExpectNear({losses.begin() + 6, losses.end()}, Field("loss"), 1e-4);
}

TEST_P(TrainerTest, GraphsChangeNoBit) {
  options_.settings.max_steps = 20;
  ASSERT_EQ(setenv("QST_CUDA_GRAPHS", "0", 1), 0);
  QST_ASSERT_OK(Train("plain"));
  ASSERT_EQ(unsetenv("QST_CUDA_GRAPHS"), 0);
  const std::string expected = Curve();
  EXPECT_EQ(trainer_->network().graph_stats().num_captured, 0);
  QST_ASSERT_OK(Train("graphs"));
  EXPECT_EQ(Curve(), expected);
  EXPECT_EQ(NetworkBytes("graphs"), NetworkBytes("plain"));
  const GraphStats& stats = trainer_->network().graph_stats();
  EXPECT_FALSE(stats.is_failed);
  if (GetParam() == DeviceType::kCuda) {
    EXPECT_GT(stats.num_replayed, 2 * stats.num_plain);
  } else {
    EXPECT_EQ(stats.num_captured, 0);
  }
}

QST_INSTANTIATE_DEVICE_TEST(TrainerTest);
QST_INSTANTIATE_DEVICE_TEST(TrainerDevicesTest);

}  // namespace
}  // namespace qst
