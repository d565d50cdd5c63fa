#include "worker/host_job_yaml.h"

#include "gtest/gtest.h"

namespace qst {
namespace {

TEST(JobSpecToYamlTest, FieldsHaveTheNamesAndValuesOfAJobFile) {
  v1::JobSpec spec;
  spec.set_name("a \"b\"\n\x01");
  spec.mutable_side()->set_preset(v1::SIDE_PRESET_TUNED);
  spec.mutable_side()->set_gate_init(0.0);
  spec.mutable_task()->set_type(v1::TASK_TYPE_CAUSAL_LM);
  spec.mutable_task()->add_labels("yes");
  spec.mutable_task()->add_labels("1");
  spec.mutable_data();
  spec.mutable_train()->set_learning_rate(2e-4);
  spec.mutable_train()->set_adam_epsilon(1e-8);
  spec.mutable_train()->set_warmup_ratio(1.0 / 3.0);
  spec.mutable_train()->set_shuffle(false);
  EXPECT_EQ(JobSpecToYaml(spec),
            "name: \"a \\\"b\\\"\\n\\x01\"\n"
            "side:\n"
            "  preset: tuned\n"
            "  gate_init: 0\n"
            "task:\n"
            "  type: causal_lm\n"
            "  labels:\n"
            "    - \"yes\"\n"
            "    - \"1\"\n"
            "train:\n"
            "  learning_rate: 0.0002\n"
            "  warmup_ratio: 0.3333333333333333\n"
            "  adam_epsilon: 1e-08\n"
            "  shuffle: false\n");
}

}  // namespace
}  // namespace qst
