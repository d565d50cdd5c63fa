#include "worker/train/training_plan.h"

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "proto/support/status_matchers.h"

namespace qst {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

TEST(TrainingPlanTest, StepsFollowFromEpochsUnlessGiven) {
  TrainSettings settings;
  settings.epochs = 2.2;
  EXPECT_EQ(TrainingPlan(settings, 5, true).total_steps(), 11);
  settings.epochs = 0.01;
  EXPECT_EQ(TrainingPlan(settings, 5, true).total_steps(), 1);
  settings.max_steps = 7;
  EXPECT_EQ(TrainingPlan(settings, 5, true).total_steps(), 7);
}

std::vector<std::int64_t> StepsWhere(const TrainingPlan& plan, bool (TrainingPlan::*is_due)(std::int64_t) const) {
  std::vector<std::int64_t> out;
  for (std::int64_t step = 0; step <= plan.total_steps(); ++step) {
    if ((plan.*is_due)(step)) out.push_back(step);
  }
  return out;
}

TEST(TrainingPlanTest, EvaluatesAndSavesAtEpochEndsOrEveryNStepsAndAlwaysAtTheEnd) {
  TrainSettings settings;
  settings.max_steps = 7;
  settings.save_initial = false;
  settings.eval_at_start = true;
  EXPECT_THAT(StepsWhere(TrainingPlan(settings, 3, true), &TrainingPlan::EvaluatesAfter), ElementsAre(0, 3, 6, 7));
  EXPECT_THAT(StepsWhere(TrainingPlan(settings, 3, true), &TrainingPlan::SavesAfter), ElementsAre(3, 6, 7));
  EXPECT_THAT(StepsWhere(TrainingPlan(settings, 3, false), &TrainingPlan::EvaluatesAfter), ElementsAre());
  settings.eval_every_steps = 5;
  settings.eval_at_start = false;
  settings.checkpoint_every_steps = 4;
  settings.save_initial = true;
  EXPECT_THAT(StepsWhere(TrainingPlan(settings, 3, true), &TrainingPlan::EvaluatesAfter), ElementsAre(5, 7));
  EXPECT_THAT(StepsWhere(TrainingPlan(settings, 3, true), &TrainingPlan::SavesAfter), ElementsAre(0, 4, 7));
}

std::vector<std::string> AllItems(const TrainingPlan& plan, std::int64_t steps_done) {
  BatcherOptions options;
  options.batch_size = 2;
  options.micro_batch_tokens = 5;
  options.shuffle = false;
  auto batcher = Batcher::Create(options, {3, 3, 2, 2});
  QST_EXPECT_OK(batcher);
  WorkSequence work(plan, &*batcher, {{0, 1}, {2}}, steps_done);
  std::vector<std::string> out;
  while (const auto item = work.Next()) {
    std::string text = absl::StrCat(item->kind == WorkItem::Kind::kTrain ? "train " : "eval ", item->step, ":");
    for (const std::int64_t example : item->examples) absl::StrAppend(&text, " ", example);
    out.push_back(text);
  }
  EXPECT_FALSE(work.Next().has_value());
  return out;
}

TEST(WorkSequenceTest, ListsTrainingAndEvaluationInOrder) {
  TrainSettings settings;
  settings.max_steps = 3;
  const TrainingPlan plan(settings, 2, true);
  EXPECT_THAT(AllItems(plan, 0), ElementsAre("eval 0: 0 1", "eval 0: 2", "train 1: 0", "train 1: 1", "train 2: 2 3",
                                             "eval 2: 0 1", "eval 2: 2", "train 3: 0", "train 3: 1", "eval 3: 0 1",
                                             "eval 3: 2"));
  // Resumed after step 2, whose evaluation was done before the checkpoint was written.
  EXPECT_THAT(AllItems(plan, 2), ElementsAre("train 3: 0", "train 3: 1", "eval 3: 0 1", "eval 3: 2"));
  EXPECT_THAT(AllItems(plan, 3), ElementsAre());
}

TEST(WorkSequenceTest, WorksWithoutAnEvaluationSet) {
  TrainSettings settings;
  settings.max_steps = 1;
  EXPECT_THAT(AllItems(TrainingPlan(settings, 2, false), 0), ElementsAre("train 1: 0", "train 1: 1"));
}

TEST(MicroBatchTest, ExamplesAreCutWhereTheNextNoLongerFits) {
  EXPECT_THAT(CutMicroBatches({3, 2, 9, 1, 4}, 5),
              ElementsAre(ElementsAre(0, 1), ElementsAre(2), ElementsAre(3, 4)));
  EXPECT_TRUE(CutMicroBatches({}, 5).empty());
}

TEST(TrainSettingsTest, DefaultsDependOnTheTask) {
  v1::JobSpec spec;
  auto settings = ResolveTrainSettings(spec);
  QST_ASSERT_OK(settings);
  EXPECT_EQ(settings->schedule, v1::SCHEDULE_CONSTANT);
  EXPECT_EQ(settings->warmup_ratio, 0.03);
  EXPECT_TRUE(settings->eval_at_start);
  EXPECT_EQ(settings->seed, 42u);
  spec.mutable_task()->set_type(v1::TASK_TYPE_CLASSIFICATION);
  spec.mutable_train()->set_warmup_ratio(0.0);
  spec.mutable_train()->set_seed(0);
  spec.mutable_train()->set_clip_norm(0.0);
  settings = ResolveTrainSettings(spec);
  QST_ASSERT_OK(settings);
  EXPECT_EQ(settings->schedule, v1::SCHEDULE_LINEAR);
  EXPECT_EQ(settings->warmup_ratio, 0.0);
  EXPECT_EQ(settings->seed, 0u);
  EXPECT_EQ(settings->clip_norm, 0.0);
  EXPECT_FALSE(settings->eval_at_start);
}

TEST(TrainSettingsTest, RefusesValuesOutOfRangeNamingTheField) {
  const auto code = absl::StatusCode::kInvalidArgument;
  const auto with = [](auto set) {
    v1::JobSpec spec;
    set(spec.mutable_train());
    return ResolveTrainSettings(spec);
  };
  EXPECT_THAT(with([](v1::TrainConfig* t) { t->set_learning_rate(-1); }), StatusIs(code, HasSubstr("learning_rate")));
  EXPECT_THAT(with([](v1::TrainConfig* t) { t->set_epochs(-1); }), StatusIs(code, HasSubstr("epochs")));
  EXPECT_THAT(with([](v1::TrainConfig* t) { t->set_adam_beta1(1); }), StatusIs(code, HasSubstr("adam_beta1")));
  EXPECT_THAT(with([](v1::TrainConfig* t) { t->set_warmup_ratio(1.5); }), StatusIs(code, HasSubstr("warmup_ratio")));
  EXPECT_THAT(with([](v1::TrainConfig* t) { t->set_clip_norm(NAN); }), StatusIs(code, HasSubstr("clip_norm")));
}

}  // namespace
}  // namespace qst
