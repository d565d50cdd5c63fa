// Measures of how predictions and truth agree, as the GLUE tasks use them. All in float64, in the order of the arguments.
#ifndef QST_WORKER_TRAIN_EVAL_METRICS_H_
#define QST_WORKER_TRAIN_EVAL_METRICS_H_

#include <cstdint>
#include <vector>

namespace qst {

// Of two classes, of which 1 is the positive one.
struct BinaryScores {
  double f1 = 0.0;        // harmonic mean of precision and recall; 0 if nothing is truly or rightly positive
  double matthews = 0.0;  // correlation coefficient in [-1, 1]; 0 if one class is never predicted or never true
};
BinaryScores ScoreBinary(const std::vector<std::int32_t>& predicted, const std::vector<std::int32_t>& expected);

// Correlation of the values, and of their ranks (equal values share the mean of their ranks), in [-1, 1]. NaN: fewer than
// two values, or all of one side equal. Equal sizes.
double PearsonCorrelation(const std::vector<float>& a, const std::vector<float>& b);
double SpearmanCorrelation(const std::vector<float>& a, const std::vector<float>& b);

}  // namespace qst

#endif  // QST_WORKER_TRAIN_EVAL_METRICS_H_
