#include "server/job_state.h"

#include <set>
#include <utility>

#include "gtest/gtest.h"

namespace qst {
namespace {

using v1::JOB_STATE_CANCELLED;
using v1::JOB_STATE_EVALUATING;
using v1::JOB_STATE_FAILED;
using v1::JOB_STATE_PREPARING;
using v1::JOB_STATE_QUEUED;
using v1::JOB_STATE_RUNNING;
using v1::JOB_STATE_SUCCEEDED;

// The diagram of job_state.h, edge by edge.
const std::set<std::pair<v1::JobState, v1::JobState>>& Diagram() {
  static const auto* const edges = new std::set<std::pair<v1::JobState, v1::JobState>>{
      {JOB_STATE_QUEUED, JOB_STATE_PREPARING},     {JOB_STATE_QUEUED, JOB_STATE_CANCELLED},
      {JOB_STATE_QUEUED, JOB_STATE_FAILED},        {JOB_STATE_PREPARING, JOB_STATE_RUNNING},
      {JOB_STATE_PREPARING, JOB_STATE_EVALUATING}, {JOB_STATE_PREPARING, JOB_STATE_CANCELLED},
      {JOB_STATE_PREPARING, JOB_STATE_FAILED},     {JOB_STATE_PREPARING, JOB_STATE_QUEUED},
      {JOB_STATE_RUNNING, JOB_STATE_EVALUATING},   {JOB_STATE_RUNNING, JOB_STATE_SUCCEEDED},
      {JOB_STATE_RUNNING, JOB_STATE_CANCELLED},    {JOB_STATE_RUNNING, JOB_STATE_FAILED},
      {JOB_STATE_RUNNING, JOB_STATE_QUEUED},       {JOB_STATE_EVALUATING, JOB_STATE_RUNNING},
      {JOB_STATE_EVALUATING, JOB_STATE_SUCCEEDED}, {JOB_STATE_EVALUATING, JOB_STATE_CANCELLED},
      {JOB_STATE_EVALUATING, JOB_STATE_FAILED},    {JOB_STATE_EVALUATING, JOB_STATE_QUEUED},
  };
  return *edges;
}

TEST(JobStateTest, AllowsEveryEdgeOfTheDiagramAndNothingElse) {
  for (int from = 0; from < v1::JobState_ARRAYSIZE; ++from) {
    for (int to = 0; to < v1::JobState_ARRAYSIZE; ++to) {
      const auto edge = std::make_pair(static_cast<v1::JobState>(from), static_cast<v1::JobState>(to));
      EXPECT_EQ(IsJobTransitionAllowed(edge.first, edge.second), Diagram().count(edge) == 1)
          << JobStateName(edge.first) << " -> " << JobStateName(edge.second);
    }
  }
}

TEST(JobStateTest, NothingLeavesAFinalState) {
  for (const v1::JobState state : {JOB_STATE_SUCCEEDED, JOB_STATE_FAILED, JOB_STATE_CANCELLED}) {
    EXPECT_TRUE(IsFinalJobState(state));
    for (int to = 0; to < v1::JobState_ARRAYSIZE; ++to) {
      EXPECT_FALSE(IsJobTransitionAllowed(state, static_cast<v1::JobState>(to)));
    }
  }
}

TEST(JobStateTest, EveryStateButTheFinalOnesCanBeCancelled) {
  for (const v1::JobState state : {JOB_STATE_QUEUED, JOB_STATE_PREPARING, JOB_STATE_RUNNING, JOB_STATE_EVALUATING}) {
    EXPECT_TRUE(IsJobTransitionAllowed(state, JOB_STATE_CANCELLED)) << JobStateName(state);
  }
}

}  // namespace
}  // namespace qst
