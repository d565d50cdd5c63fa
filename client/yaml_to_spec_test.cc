#include "client/yaml_to_spec.h"

#include <google/protobuf/util/message_differencer.h>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "client/errors.h"
#include "client/spec_to_yaml.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/support/status_matchers.h"

namespace qst {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::StartsWith;

constexpr char kFullJob[] = R"(# a comment
name: topics
model: smollm2
quantization: {type: fp4, block_size: 128, double_quant: false}
side:
  preset: paper
  reduction: 8
  gate_lr_scale: 10
  sigmoid_mix: true
task:
  type: classification
  labels: [art, "42", 'law: a']
data:
  train: train.jsonl
  eval: eval.jsonl
  columns:
    text: body
  max_train_examples: 5000000000
train:
  epochs: 1.5
  learning_rate: 1e-3
  schedule: linear
  warmup_ratio: 0
  wire_dtype: int8
  seed: 18446744073709551615
eval:
resources:
  stages: 2
  device: cuda
)";

TEST(YamlToSpecTest, ReadsEveryKindOfField) {
  const auto spec = YamlToSpec(kFullJob, "job.yaml");
  QST_ASSERT_OK(spec);
  EXPECT_EQ(spec->name(), "topics");
  EXPECT_EQ(spec->quantization().type(), v1::QUANTIZATION_TYPE_FP4);
  EXPECT_EQ(spec->quantization().block_size(), 128u);
  EXPECT_TRUE(spec->quantization().has_double_quant());
  EXPECT_FALSE(spec->quantization().double_quant());
  EXPECT_EQ(spec->side().preset(), v1::SIDE_PRESET_PAPER);
  EXPECT_EQ(spec->train().wire_dtype(), v1::WIRE_DTYPE_INT8);
  EXPECT_EQ(spec->resources().device(), v1::DEVICE_KIND_CUDA);
  EXPECT_EQ(spec->side().gate_lr_scale(), 10.0);
  EXPECT_TRUE(spec->side().sigmoid_mix());
  EXPECT_FALSE(spec->side().has_gate_init());
  EXPECT_THAT(spec->task().labels(), ElementsAre("art", "42", "law: a"));
  EXPECT_EQ(spec->data().columns().text(), "body");
  EXPECT_EQ(spec->data().max_train_examples(), 5000000000u);
  EXPECT_EQ(spec->train().epochs(), 1.5);
  EXPECT_EQ(spec->train().learning_rate(), 1e-3);
  EXPECT_TRUE(spec->train().has_warmup_ratio());
  EXPECT_EQ(spec->train().warmup_ratio(), 0.0);
  EXPECT_EQ(spec->train().seed(), 18446744073709551615u);
  EXPECT_FALSE(spec->has_eval());
  EXPECT_EQ(spec->resources().stages(), 2u);
}

TEST(YamlToSpecTest, EmptyTextIsAnEmptyJob) {
  for (const char* text : {"", "\n", "# nothing\n", "---\n", "~"}) {
    const auto spec = YamlToSpec(text, "job.yaml");
    QST_ASSERT_OK(spec);
    EXPECT_EQ(spec->ByteSizeLong(), 0u) << text;
  }
}

TEST(YamlToSpecTest, ErrorsNameFileLineFieldAndRemedy) {
  struct Case {
    const char* yaml;
    const char* message;
  };
  const Case cases[] = {
      {"name: a\ntrain:\n  lerning_rate: 1\n",
       "job.yaml:3: train.lerning_rate: unknown key; did you mean 'learning_rate'?"},
      {"learning_rate: 1\n", "job.yaml:1: learning_rate: unknown key; did you mean 'train.learning_rate'?"},
      {"train:\n  model: m\n", "job.yaml:2: train.model: unknown key; 'model' belongs at the top level"},
      {"resources: {frobnicate: 1}\n", "job.yaml:1: resources.frobnicate: unknown key; known here: stages, workers"},
      {"<<: {name: a}\n", "job.yaml:1: <<: unknown key"},
      {"train:\n  epochs: many\n", "job.yaml:2: train.epochs: expected a number, not 'many'"},
      {"train:\n  epochs: '3'\n", "job.yaml:2: train.epochs: expected a number, not the text '3'"},
      {"train: {epochs: .inf}\n", "train.epochs: expected a number"},
      {"train: {epochs: nan}\n", "train.epochs: expected a number"},
      {"train: {epochs: 1e999}\n", "train.epochs: expected a number"},
      {"train:\n  batch_size: -1\n",
       "job.yaml:2: train.batch_size: expected a whole number from 0 to 4294967295, not '-1'"},
      {"train:\n  batch_size: 4294967296\n", "expected a whole number from 0 to 4294967295"},
      {"train:\n  batch_size: 1.5\n", "expected a whole number"},
      {"train:\n  max_steps: 1e3\n", "job.yaml:2: train.max_steps: expected a whole number, 0 or more, not '1e3'"},
      {"train:\n  shuffle: yes\n", "job.yaml:2: train.shuffle: expected true or false, not 'yes'"},
      {"quantization:\n  type: NF4\n", "job.yaml:2: quantization.type: unknown value 'NF4'; one of nf4, fp4, none"},
      {"quantization: {type: unspecified}\n", "one of nf4, fp4, none"},
      {"side:\n  downsample: conv\n", "one of adapter, lora, linear, maxpool, avgpool"},
      {"train: 3\n", "job.yaml:1: train: expected a section with keys such as epochs: ..."},
      {"train:\n- epochs: 3\n", "job.yaml:2: train: expected a section"},
      {"- a\n- b\n", "job.yaml:1: expected a section with keys such as name: ..."},
      {"name: [a]\n", "job.yaml:1: name: expected a single value"},
      {"name: {a: b}\n", "job.yaml:1: name: expected a single value"},
      {"task:\n  labels: art\n", "job.yaml:2: task.labels: expected a list"},
      {"task:\n  labels: [[a]]\n", "job.yaml:2: task.labels: a list holds plain values only"},
      {"? [a]\n: b\n", "a key must be a plain name"},
      {"name: a\nmodel: b\nname: c\n", "job.yaml:3: name: this key is given twice"},
      {"name: a\n---\nname: b\n", "job.yaml:2: what begins here is no part of the job"},
      {",namu: |c\n", "what begins here is no part of the job"},
      {"name: 'a\n", "not YAML: "},
      {"name: a\n\tmodel: b\n", "not YAML: "},
      {"name: *nothing\n", "not YAML: "},
      {"name: \xed\xa0\x80\n", "job.yaml: not a text file in UTF-8"},
      {"name: [a\n", "not YAML: "},
      {"a: b: c\n", "job.yaml:1: not YAML: "},
  };
  for (const Case& c : cases) {
    const auto spec = YamlToSpec(c.yaml, "job.yaml");
    EXPECT_THAT(spec, StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(c.message))) << c.yaml;
    EXPECT_TRUE(IsUsageError(spec.status())) << c.yaml;
    EXPECT_THAT(std::string(spec.status().message()), StartsWith("job.yaml:")) << c.yaml;
    EXPECT_EQ(spec.status().message().find('\n'), absl::string_view::npos) << c.yaml;
  }
}

TEST(YamlToSpecTest, HostileTextsEndSoon) {
  std::string aliases = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n";
  for (int i = 1; i < 40; ++i) {
    absl::StrAppend(&aliases, "a", i, ": &a", i, " [");
    for (int j = 0; j < 9; ++j) absl::StrAppend(&aliases, j ? ", " : "", "*a", i - 1);
    absl::StrAppend(&aliases, "]\n");
  }
  std::string dashes, keys, flow, indents;
  for (int i = 0; i < 200000; ++i) dashes += "- ";
  for (int i = 0; i < 100000; ++i) absl::StrAppend(&keys, "k", i, ": 1\n");
  for (int i = 0; i < 200000; ++i) flow += "{a: ";
  for (int i = 0; i < 1000; ++i) absl::StrAppend(&indents, std::string(i, ' '), "a:\n");
  std::string labels = "task:\n  labels: [";
  for (int i = 0; i < 400000; ++i) labels += "a,";
  labels += "]";
  const std::string texts[] = {labels,
                               aliases,
                               dashes,
                               keys,
                               flow,
                               indents,
                               std::string(1000000, '['),
                               "&a [*a]",
                               "task:\n  labels: &a [*a]\n",
                               "&a {task: *a}",
                               std::string(300, '\0'),
                               "\xff\xfe\xfd",
                               std::string(500000, '?')};
  const absl::Time start = absl::Now();
  for (const std::string& text : texts) {
    EXPECT_THAT(YamlToSpec(text, "job.yaml"), StatusIs(absl::StatusCode::kInvalidArgument)) << text.substr(0, 40);
  }
  EXPECT_LT(absl::Now() - start, absl::Seconds(20));
}

TEST(YamlToSpecTest, TooLargeFileIsRefusedUnread) {
  EXPECT_THAT(YamlToSpec(std::string(kMaxJobFileBytes + 1, '#'), "job.yaml"),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("job.yaml: 1048577 bytes")));
}

TEST(ApplyAssignmentTest, SetsOneFieldAndKeepsTheRest) {
  v1::JobSpec spec = *YamlToSpec(kFullJob, "job.yaml");
  QST_ASSERT_OK(ApplyAssignment("train.learning_rate=2e-4", &spec));
  QST_ASSERT_OK(ApplyAssignment("task.labels=x,y", &spec));
  QST_ASSERT_OK(ApplyAssignment("side.preset=tuned", &spec));
  QST_ASSERT_OK(ApplyAssignment("checkpoint.save_initial=true", &spec));
  QST_ASSERT_OK(ApplyAssignment("data.train=a=b.jsonl", &spec));
  EXPECT_EQ(spec.train().learning_rate(), 2e-4);
  EXPECT_EQ(spec.train().epochs(), 1.5);
  EXPECT_THAT(spec.task().labels(), ElementsAre("x", "y"));
  EXPECT_EQ(spec.side().preset(), v1::SIDE_PRESET_TUNED);
  EXPECT_TRUE(spec.checkpoint().save_initial());
  EXPECT_EQ(spec.data().train(), "a=b.jsonl");
  QST_ASSERT_OK(ApplyAssignment("task.labels=", &spec));
  EXPECT_EQ(spec.task().labels_size(), 0);
}

TEST(ApplyAssignmentTest, ErrorsNameTheKeyAndChangeNothing) {
  struct Case {
    const char* assignment;
    const char* message;
  };
  const Case cases[] = {
      {"train.lerning_rate=1", "--set train.lerning_rate: unknown key; did you mean 'learning_rate'?"},
      {"epochs=1", "--set epochs: unknown key; did you mean 'train.epochs'?"},
      {"train.epochs", "--set 'train.epochs': expected KEY=VALUE"},
      {"=1", "expected KEY=VALUE"},
      {"train=1", "--set train: is a section; set one of its keys: epochs, max_steps"},
      {"name.x=1", "--set name.x: 'name' has no keys below it"},
      {"train.epochs=x", "--set train.epochs: expected a number, not 'x'"},
      {"train.schedule=cosine", "unknown value 'cosine'; one of linear, constant"},
      {"..=1", "unknown key"},
      {"name=\xc0\xaf", "--set name: not text in UTF-8"},
  };
  for (const Case& c : cases) {
    v1::JobSpec spec;
    const absl::Status status = ApplyAssignment(c.assignment, &spec);
    EXPECT_THAT(status, StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(c.message)));
    EXPECT_TRUE(IsUsageError(status));
    EXPECT_EQ(spec.ByteSizeLong(), 0u);
  }
}

TEST(SpecToYamlTest, ReadsBackToTheSameSpec) {
  v1::JobSpec spec = *YamlToSpec(kFullJob, "job.yaml");
  for (const char* label : {"", "true", "a: b", "\"q\"", "back\\slash", "line\nbreak\ttab", "-", "# no", "null", "\x01",
                            "\xc3\xa9t\xc3\xa9", "a, b", "1e5", "~", "*x", " lead"}) {
    spec.mutable_task()->add_labels(label);
  }
  for (double x : {0.1, 1.0 / 3, 1e-308, 123456789.125, 2e-4}) {
    spec.mutable_train()->set_learning_rate(x);
    spec.mutable_train()->set_clip_norm(-x);
    const std::string yaml = SpecToYaml(spec);
    const auto back = YamlToSpec(yaml, "job.yaml");
    QST_ASSERT_OK(back);
    EXPECT_TRUE(google::protobuf::util::MessageDifferencer::Equals(spec, *back)) << yaml;
  }
}

TEST(YamlToSpecTest, CustomTemplatesKeepTheirSpacesAndLines) {
  const auto spec = YamlToSpec(
      "model: m\n"
      "data:\n"
      "  train: d\n"
      "  custom_template:\n"
      "    user_prefix: \"Q: \"\n"
      "    user_suffix: |\n"
      "      two\n"
      "      lines\n"
      "    assistant_suffix: \"\\n\\n\"\n"
      "    eos_after_answer: false\n",
      "job.yaml");
  QST_ASSERT_OK(spec);
  const v1::CustomTemplate& custom = spec->data().custom_template();
  EXPECT_EQ(custom.user_prefix(), "Q: ");
  EXPECT_EQ(custom.user_suffix(), "two\nlines\n");
  EXPECT_EQ(custom.assistant_suffix(), "\n\n");
  EXPECT_TRUE(custom.has_eos_after_answer());
  EXPECT_FALSE(custom.eos_after_answer());
  const auto back = YamlToSpec(SpecToYaml(*spec), "back.yaml");
  QST_ASSERT_OK(back);
  EXPECT_EQ(back->SerializeAsString(), spec->SerializeAsString());
}

}  // namespace
}  // namespace qst
