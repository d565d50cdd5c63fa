#include "worker/train/eval_metrics.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <numeric>

#include "proto/support/status_macros.h"

namespace qst {
namespace {

double Correlation(const std::vector<double>& a, const std::vector<double>& b) {
  QST_CHECK(a.size() == b.size());
  const auto count = static_cast<double>(a.size());
  const double mean_a = std::accumulate(a.begin(), a.end(), 0.0) / count;
  const double mean_b = std::accumulate(b.begin(), b.end(), 0.0) / count;
  double ab = 0.0, aa = 0.0, bb = 0.0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    ab += (a[i] - mean_a) * (b[i] - mean_b);
    aa += (a[i] - mean_a) * (a[i] - mean_a);
    bb += (b[i] - mean_b) * (b[i] - mean_b);
  }
  if (!(aa > 0.0 && bb > 0.0)) return std::numeric_limits<double>::quiet_NaN();
  return ab / std::sqrt(aa * bb);
}

std::vector<double> RanksOf(const std::vector<float>& values) {
  std::vector<std::size_t> order(values.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t i, std::size_t j) { return values[i] < values[j]; });
  std::vector<double> ranks(values.size());
  for (std::size_t begin = 0; begin < order.size();) {
    std::size_t end = begin + 1;
    while (end < order.size() && values[order[end]] == values[order[begin]]) ++end;
    for (std::size_t i = begin; i < end; ++i) ranks[order[i]] = 0.5 * static_cast<double>(begin + end - 1);
    begin = end;
  }
  return ranks;
}

}  // namespace

BinaryScores ScoreBinary(const std::vector<std::int32_t>& predicted, const std::vector<std::int32_t>& expected) {
  QST_CHECK(predicted.size() == expected.size());
  // counts[predicted][expected]
  double counts[2][2] = {};
  for (std::size_t i = 0; i < predicted.size(); ++i) counts[predicted[i] == 1][expected[i] == 1] += 1.0;
  const double right_yes = counts[1][1], right_no = counts[0][0], wrong_yes = counts[1][0], wrong_no = counts[0][1];
  BinaryScores scores;
  if (right_yes > 0.0) scores.f1 = 2.0 * right_yes / (2.0 * right_yes + wrong_yes + wrong_no);
  const double product =
      (right_yes + wrong_yes) * (right_yes + wrong_no) * (right_no + wrong_yes) * (right_no + wrong_no);
  if (product > 0.0) scores.matthews = (right_yes * right_no - wrong_yes * wrong_no) / std::sqrt(product);
  return scores;
}

double PearsonCorrelation(const std::vector<float>& a, const std::vector<float>& b) {
  return Correlation({a.begin(), a.end()}, {b.begin(), b.end()});
}

double SpearmanCorrelation(const std::vector<float>& a, const std::vector<float>& b) {
  return Correlation(RanksOf(a), RanksOf(b));
}

}  // namespace qst
