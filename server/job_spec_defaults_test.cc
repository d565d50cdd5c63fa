#include "server/job_spec_defaults.h"

#include <cmath>
#include <functional>
#include <limits>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/support/status_matchers.h"

namespace qst {
namespace {

using ::testing::HasSubstr;

v1::JobSpec FilledSpec() {
  v1::JobSpec spec;
  spec.set_model("m");
  spec.mutable_data()->set_train("d");
  FillJobSpecDefaults(&spec);
  return spec;
}

TEST(JobSpecDefaultsTest, AnEmptySpecGetsThePapersDefaults) {
  v1::JobSpec spec;
  FillJobSpecDefaults(&spec);
  EXPECT_EQ(spec.name(), "job");
  EXPECT_EQ(spec.side().preset(), v1::SIDE_PRESET_TUNED);
  EXPECT_EQ(spec.side().reduction(), 16u);
  EXPECT_EQ(spec.side().downsample(), v1::DOWNSAMPLE_ADAPTER);
  EXPECT_EQ(spec.side().rank(), 16u);
  EXPECT_EQ(spec.side().gate_lr_scale(), 30);
  EXPECT_TRUE(spec.side().downsample_norm());
  EXPECT_EQ(spec.side().gate_init(), 0);
  EXPECT_EQ(spec.side().mix_init(), 1);
  EXPECT_FALSE(spec.side().gate_per_channel());
  EXPECT_TRUE(spec.side().upsample_bias());
  EXPECT_EQ(spec.task().type(), v1::TASK_TYPE_CAUSAL_LM);
  EXPECT_EQ(spec.data().format(), v1::DATA_FORMAT_AUTO);
  EXPECT_EQ(spec.data().template_(), "auto");
  EXPECT_EQ(spec.data().max_length(), 512u);
  EXPECT_EQ(spec.train().epochs(), 3);
  EXPECT_EQ(spec.train().batch_size(), 16u);
  EXPECT_EQ(spec.train().micro_batch_tokens(), 2048u);
  EXPECT_EQ(spec.train().backbone_batch_tokens(), 4096u);
  EXPECT_EQ(spec.train().max_passes_in_flight(), 2u);
  EXPECT_EQ(spec.train().learning_rate(), 1e-3);
  EXPECT_EQ(spec.train().schedule(), v1::SCHEDULE_CONSTANT);
  EXPECT_EQ(spec.train().warmup_ratio(), 0.03);
  EXPECT_EQ(spec.train().adam_beta1(), 0.9);
  EXPECT_EQ(spec.train().adam_beta2(), 0.999);
  EXPECT_EQ(spec.train().adam_epsilon(), 1e-8);
  EXPECT_EQ(spec.train().clip_norm(), 1);
  EXPECT_EQ(spec.train().seed(), 42u);
  EXPECT_TRUE(spec.train().shuffle());
  EXPECT_EQ(spec.train().wire_dtype(), v1::WIRE_DTYPE_BF16);
  EXPECT_EQ(spec.train().dtype(), v1::COMPUTE_DTYPE_BF16);
  EXPECT_TRUE(spec.train().tf32());
  EXPECT_EQ(spec.resources().device(), v1::DEVICE_KIND_AUTO);
  EXPECT_EQ(spec.train().log_every_steps(), 1u);
  EXPECT_TRUE(spec.eval().at_start());
  EXPECT_EQ(spec.checkpoint().keep(), 2u);
  QST_EXPECT_OK(ValidateJobSpec(FilledSpec()));
}

TEST(JobSpecDefaultsTest, ClassificationHasItsOwnScheduleAndNoEvaluationAtStart) {
  v1::JobSpec spec;
  spec.mutable_task()->set_type(v1::TASK_TYPE_CLASSIFICATION);
  FillJobSpecDefaults(&spec);
  EXPECT_EQ(spec.train().schedule(), v1::SCHEDULE_LINEAR);
  EXPECT_EQ(spec.train().warmup_ratio(), 0.06);
  EXPECT_FALSE(spec.eval().at_start());
}

TEST(JobSpecDefaultsTest, PresetsSetWhatIsUnsetAndLeaveWhatIsSet) {
  v1::JobSpec paper;
  paper.mutable_side()->set_preset(v1::SIDE_PRESET_PAPER);
  FillJobSpecDefaults(&paper);
  EXPECT_EQ(paper.side().gate_lr_scale(), 1);
  EXPECT_FALSE(paper.side().sigmoid_mix());

  v1::JobSpec reference;
  reference.mutable_side()->set_preset(v1::SIDE_PRESET_REFERENCE);
  reference.mutable_side()->set_gate_per_channel(false);
  FillJobSpecDefaults(&reference);
  EXPECT_EQ(reference.side().gate_init(), 0.5);
  EXPECT_FALSE(reference.side().gate_per_channel());
  EXPECT_TRUE(reference.side().sigmoid_mix());
  EXPECT_TRUE(reference.side().downsample_norm());
  EXPECT_TRUE(reference.side().share_first_downsample());
}

TEST(JobSpecDefaultsTest, ExplicitZerosOfOptionalFieldsStay) {
  v1::JobSpec spec;
  spec.mutable_train()->set_clip_norm(0);
  spec.mutable_train()->set_seed(0);
  spec.mutable_train()->set_warmup_ratio(0);
  spec.mutable_side()->set_gate_lr_scale(0);
  FillJobSpecDefaults(&spec);
  EXPECT_EQ(spec.train().clip_norm(), 0);
  EXPECT_EQ(spec.train().seed(), 0u);
  EXPECT_EQ(spec.train().warmup_ratio(), 0);
  EXPECT_EQ(spec.side().gate_lr_scale(), 0);
}

TEST(JobSpecDefaultsTest, FillingTwiceChangesNothing) {
  const v1::JobSpec once = FilledSpec();
  v1::JobSpec twice = once;
  FillJobSpecDefaults(&twice);
  EXPECT_EQ(once.SerializeAsString(), twice.SerializeAsString());
}

struct Violation {
  std::string name;
  std::function<void(v1::JobSpec*)> break_it;
  std::string message;
};

class JobSpecViolationTest : public testing::TestWithParam<Violation> {};

TEST_P(JobSpecViolationTest, NamesTheField) {
  v1::JobSpec spec = FilledSpec();
  GetParam().break_it(&spec);
  EXPECT_THAT(ValidateJobSpec(spec), StatusIs(absl::StatusCode::kInvalidArgument, GetParam().message));
}

INSTANTIATE_TEST_SUITE_P(
    All, JobSpecViolationTest,
    testing::Values(
        Violation{"Name", [](v1::JobSpec* s) { s->set_name("a b"); },
                  "name: must be 1 to 64 of A-Z a-z 0-9 . _ -, is 'a b'"},
        Violation{"Model", [](v1::JobSpec* s) { s->clear_model(); },
                  "model: is required: a name from `qst model list`"},
        Violation{"Train", [](v1::JobSpec* s) { s->mutable_data()->clear_train(); },
                  "data.train: is required: a data set's name or id"},
        Violation{"BatchSize", [](v1::JobSpec* s) { s->mutable_train()->set_batch_size(0); },
                  "train.batch_size: must be at least 1, is 0"},
        Violation{"BatchSizeTooLarge", [](v1::JobSpec* s) { s->mutable_train()->set_batch_size(1 << 20); },
                  "train.batch_size: must be at most 65536, is 1048576"},
        Violation{"Epochs", [](v1::JobSpec* s) { s->mutable_train()->set_epochs(-1); },
                  "train.epochs: must be above 0 and below 1e+06, is -1"},
        Violation{
            "LearningRate",
            [](v1::JobSpec* s) { s->mutable_train()->set_learning_rate(std::numeric_limits<double>::quiet_NaN()); },
            "train.learning_rate: must be above 0, is nan"},
        Violation{"Beta", [](v1::JobSpec* s) { s->mutable_train()->set_adam_beta2(1); },
                  "train.adam_beta2: must be at least 0 and below 1, is 1"},
        Violation{"Warmup", [](v1::JobSpec* s) { s->mutable_train()->set_warmup_ratio(1.5); },
                  "train.warmup_ratio: must be at least 0 and below 1, is 1.5"},
        Violation{"MicroBatch", [](v1::JobSpec* s) { s->mutable_train()->set_micro_batch_tokens(100); },
                  "train.micro_batch_tokens: must be at least data.max_length (512), so that one example fits, is 100"},
        Violation{"BackboneBatch", [](v1::JobSpec* s) { s->mutable_train()->set_backbone_batch_tokens(1024); },
                  "train.backbone_batch_tokens: must be at least train.micro_batch_tokens (2048), is 1024"},
        Violation{
            "Template", [](v1::JobSpec* s) { s->mutable_data()->set_template_("vicunia"); },
            "data.template: must be one of auto, alpaca, chatml, llama2, llama3, mistral, vicuna, guanaco, zephyr, "
            "plain, custom, is 'vicunia'"},
        Violation{"CustomWithoutTexts", [](v1::JobSpec* s) { s->mutable_data()->set_template_("custom"); },
                  "data.custom_template: is required, since data.template is custom"},
        Violation{"TextsOfAnotherTemplate",
                  [](v1::JobSpec* s) {
                    s->mutable_data()->set_template_("chatml");
                    s->mutable_data()->mutable_custom_template()->set_user_prefix("Q: ");
                  },
                  "data.custom_template: must not be given, since data.template is chatml"},
        Violation{"LongText",
                  [](v1::JobSpec* s) {
                    s->mutable_data()->mutable_custom_template()->set_user_prefix(std::string(10'001, 'x'));
                  },
                  "data.custom_template.user_prefix: must be at most 10000 bytes, is 10001"},
        Violation{"LabelsOfNumbers",
                  [](v1::JobSpec* s) {
                    s->mutable_task()->set_type(v1::TASK_TYPE_REGRESSION);
                    s->mutable_task()->add_labels("a");
                    s->mutable_task()->add_labels("b");
                  },
                  "task.labels: only for classification, task.type is regression"},
        Violation{"ProbeOfNumbers",
                  [](v1::JobSpec* s) {
                    s->mutable_task()->set_type(v1::TASK_TYPE_REGRESSION);
                    s->mutable_eval()->set_linear_probe(true);
                  },
                  "eval.linear_probe: only classification has one"},
        Violation{"Labels",
                  [](v1::JobSpec* s) {
                    s->mutable_task()->add_labels("a");
                    s->mutable_task()->add_labels("b");
                  },
                  "task.labels: only for classification, task.type is causal_lm"},
        Violation{"LabelTwice",
                  [](v1::JobSpec* s) {
                    s->mutable_task()->set_type(v1::TASK_TYPE_CLASSIFICATION);
                    s->mutable_task()->add_labels("a");
                    s->mutable_task()->add_labels("a");
                  },
                  "task.labels[1]: 'a' comes twice"},
        Violation{"Preset", [](v1::JobSpec* s) { s->mutable_side()->set_preset(static_cast<v1::SidePreset>(77)); },
                  "side.preset: value 77 is unknown"},
        Violation{"Rank", [](v1::JobSpec* s) { s->mutable_side()->set_rank(5000); },
                  "side.rank: must be at most 4096, is 5000"},
        Violation{"Workers",
                  [](v1::JobSpec* s) {
                    s->mutable_resources()->set_stages(2);
                    s->mutable_resources()->set_workers(4);
                  },
                  "resources.workers: must be at most resources.stages + 1 (3), is 4"},
        Violation{"Device", [](v1::JobSpec* s) { s->mutable_resources()->set_device(static_cast<v1::DeviceKind>(9)); },
                  "resources.device: value 9 is unknown"},
        Violation{"TwoAtOnce",
                  [](v1::JobSpec* s) {
                    s->mutable_train()->set_batch_size(0);
                    s->mutable_side()->set_reduction(0);
                  },
                  "side.reduction: must be at least 1, is 0; train.batch_size: must be at least 1, is 0"}),
    [](const testing::TestParamInfo<Violation>& info) { return info.param.name; });

TEST(ValidateJobSpecTest, EveryTemplateIsAccepted) {
  for (const char* name :
       {"auto", "alpaca", "chatml", "llama2", "llama3", "mistral", "vicuna", "guanaco", "zephyr", "plain"}) {
    v1::JobSpec spec = FilledSpec();
    spec.mutable_data()->set_template_(name);
    QST_EXPECT_OK(ValidateJobSpec(spec));
  }
  for (const char* name : {"auto", "custom"}) {
    v1::JobSpec spec = FilledSpec();
    spec.mutable_data()->set_template_(name);
    spec.mutable_data()->mutable_custom_template()->set_user_prefix("Q: ");
    QST_EXPECT_OK(ValidateJobSpec(spec));
  }
}

TEST(FillJobSpecDefaultsTest, RegressionIsTrainedAsClassificationIs) {
  v1::JobSpec numbers, classes;
  numbers.mutable_task()->set_type(v1::TASK_TYPE_REGRESSION);
  classes.mutable_task()->set_type(v1::TASK_TYPE_CLASSIFICATION);
  FillJobSpecDefaults(&numbers);
  FillJobSpecDefaults(&classes);
  EXPECT_EQ(numbers.train().SerializeAsString(), classes.train().SerializeAsString());
  EXPECT_EQ(numbers.eval().SerializeAsString(), classes.eval().SerializeAsString());
}

TEST(FillDataDefaultsTest, FillsAndChecksWhatDescribingNeeds) {
  v1::DataConfig data;
  QST_ASSERT_OK(FillDataDefaults(&data));
  EXPECT_EQ(data.template_(), "auto");
  EXPECT_EQ(data.max_length(), 512u);
  EXPECT_EQ(data.format(), v1::DATA_FORMAT_AUTO);
  data.set_max_length(1 << 30);
  EXPECT_THAT(FillDataDefaults(&data), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("data.max_length")));
}

TEST(ValidateJobSpecTest, EveryWireTypeAndDeviceIsAccepted) {
  for (const v1::WireDtype dtype : {v1::WIRE_DTYPE_BF16, v1::WIRE_DTYPE_F32, v1::WIRE_DTYPE_INT8, v1::WIRE_DTYPE_FP8}) {
    for (const v1::DeviceKind device : {v1::DEVICE_KIND_AUTO, v1::DEVICE_KIND_CPU, v1::DEVICE_KIND_CUDA}) {
      v1::JobSpec spec = FilledSpec();
      spec.mutable_train()->set_wire_dtype(dtype);
      spec.mutable_resources()->set_device(device);
      QST_EXPECT_OK(ValidateJobSpec(spec));
    }
  }
}

TEST(ValidateJobSpecTest, AnUnknownComputeTypeIsRefused) {
  v1::JobSpec spec = FilledSpec();
  for (const v1::ComputeDtype dtype : {v1::COMPUTE_DTYPE_BF16, v1::COMPUTE_DTYPE_F16, v1::COMPUTE_DTYPE_F32}) {
    spec.mutable_train()->set_dtype(dtype);
    QST_EXPECT_OK(ValidateJobSpec(spec));
  }
  spec.mutable_train()->set_dtype(static_cast<v1::ComputeDtype>(9));
  EXPECT_THAT(ValidateJobSpec(spec), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("train.dtype: value 9")));
}

v1::Model StoredModel() {
  v1::Model model;
  model.set_name("m");
  model.set_num_layers(6);
  model.mutable_quantization()->set_type(v1::QUANTIZATION_TYPE_NF4);
  model.mutable_quantization()->set_block_size(64);
  model.mutable_quantization()->set_double_quant(true);
  return model;
}

TEST(MatchModelTest, UnsetQuantizationComesFromTheModel) {
  v1::JobSpec spec = FilledSpec();
  QST_ASSERT_OK(MatchModel(StoredModel(), &spec));
  EXPECT_EQ(spec.quantization().type(), v1::QUANTIZATION_TYPE_NF4);
  EXPECT_EQ(spec.quantization().block_size(), 64u);
  EXPECT_TRUE(spec.quantization().double_quant());
}

TEST(MatchModelTest, AnythingElseThanWhatIsStoredIsRefused) {
  v1::JobSpec spec = FilledSpec();
  spec.mutable_quantization()->set_type(v1::QUANTIZATION_TYPE_FP4);
  spec.mutable_quantization()->set_block_size(128);
  spec.mutable_quantization()->set_double_quant(false);
  const absl::Status status = MatchModel(StoredModel(), &spec);
  EXPECT_THAT(status,
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("quantization.type: must be nf4, is fp4")));
  EXPECT_THAT(status,
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("quantization.block_size: must be 64, is 128")));
  EXPECT_THAT(status, StatusIs(absl::StatusCode::kInvalidArgument,
                               HasSubstr("quantization.double_quant: must be true, is false")));
}

TEST(MatchModelTest, BlocksOfAModelWithoutQuantizationDoNotMatter) {
  v1::Model model = StoredModel();
  model.mutable_quantization()->set_type(v1::QUANTIZATION_TYPE_NONE);
  v1::JobSpec spec = FilledSpec();
  spec.mutable_quantization()->set_block_size(128);
  QST_EXPECT_OK(MatchModel(model, &spec));
}

TEST(ResolveQuantizationTest, FillsDefaultsAndRefusesOddBlocks) {
  v1::Quantization quantization;
  QST_ASSERT_OK(ResolveQuantization(&quantization));
  EXPECT_EQ(quantization.type(), v1::QUANTIZATION_TYPE_NF4);
  EXPECT_EQ(quantization.block_size(), 64u);
  EXPECT_TRUE(quantization.double_quant());
  for (const std::uint32_t block_size : {1u, 32u, 96u, 8192u}) {
    quantization.set_block_size(block_size);
    EXPECT_THAT(ResolveQuantization(&quantization),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("quantization.block_size")));
  }
}

TEST(ValidateNameTest, NamesCannotBePaths) {
  for (const char* name : {"a", "SmolLM2-135M", "x_1.y", "..."}) QST_EXPECT_OK(ValidateName(name, "name"));
  const std::string long_name(65, 'x');
  for (const char* name : {"", ".", "..", "a/b", "a b", "\xc3\xa4", long_name.c_str()}) {
    EXPECT_THAT(ValidateName(name, "name"), StatusIs(absl::StatusCode::kInvalidArgument));
  }
}

}  // namespace
}  // namespace qst
