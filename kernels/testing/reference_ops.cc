#include "kernels/testing/reference_ops.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace qst {
namespace {

double Sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }

double ActivationOf(Activation activation, double x) {
  switch (activation) {
    case Activation::kIdentity:
      return x;
    case Activation::kRelu:
      return std::max(x, 0.0);
    case Activation::kSilu:
      return x * Sigmoid(x);
    case Activation::kGelu:
      return 0.5 * x * std::erfc(-x / std::sqrt(2.0));
  }
  return 0.0;
}

double ActivationSlope(Activation activation, double x) {
  switch (activation) {
    case Activation::kIdentity:
      return 1.0;
    case Activation::kRelu:
      return x > 0.0 ? 1.0 : 0.0;
    case Activation::kSilu:
      return Sigmoid(x) + x * Sigmoid(x) * Sigmoid(-x);
    case Activation::kGelu:
      return 0.5 * std::erfc(-x / std::sqrt(2.0)) + x * std::exp(-0.5 * x * x) / std::sqrt(2.0 * std::acos(-1.0));
  }
  return 0.0;
}

double MixAt(const DMatrix& mix, std::int64_t j, bool apply_sigmoid) {
  const double value = mix.at(0, mix.cols == 1 ? 0 : j);
  return apply_sigmoid ? Sigmoid(value) : value;
}

}  // namespace

DMatrix ReferenceEmbeddingLookup(const Indices& tokens, const DMatrix& table, const Indices& positions,
                                 const DMatrix& positions_table) {
  DMatrix y(tokens.size(), table.cols);
  for (std::int64_t i = 0; i < y.rows; ++i) {
    for (std::int64_t j = 0; j < y.cols; ++j) {
      y.at(i, j) = table.at(tokens[i], j);
      if (positions_table.rows > 0) y.at(i, j) += positions_table.at(positions[i], j);
    }
  }
  return y;
}

DMatrix ReferenceRmsNorm(const DMatrix& x, const DMatrix& weight, double eps) {
  DMatrix y(x.rows, x.cols);
  for (std::int64_t i = 0; i < x.rows; ++i) {
    double squares = 0.0;
    for (std::int64_t j = 0; j < x.cols; ++j) squares += x.at(i, j) * x.at(i, j);
    const double rms = std::sqrt(squares / static_cast<double>(x.cols) + eps);
    for (std::int64_t j = 0; j < x.cols; ++j) y.at(i, j) = x.at(i, j) / rms * weight.at(0, j);
  }
  return y;
}

NormGrads ReferenceRmsNormBackward(const DMatrix& grad_y, const DMatrix& x, const DMatrix& weight, double eps) {
  const double d = static_cast<double>(x.cols);
  NormGrads grads{DMatrix(x.rows, x.cols), DMatrix(1, x.cols), DMatrix()};
  for (std::int64_t i = 0; i < x.rows; ++i) {
    double squares = 0.0;
    double dot = 0.0;
    for (std::int64_t j = 0; j < x.cols; ++j) {
      squares += x.at(i, j) * x.at(i, j);
      dot += grad_y.at(i, j) * weight.at(0, j) * x.at(i, j);
    }
    const double rms = std::sqrt(squares / d + eps);
    for (std::int64_t j = 0; j < x.cols; ++j) {
      grads.x.at(i, j) = grad_y.at(i, j) * weight.at(0, j) / rms - x.at(i, j) * dot / (d * rms * rms * rms);
      grads.weight.at(0, j) += grad_y.at(i, j) * x.at(i, j) / rms;
    }
  }
  return grads;
}

DMatrix ReferenceLayerNorm(const DMatrix& x, const DMatrix& weight, const DMatrix& bias, double eps) {
  const double d = static_cast<double>(x.cols);
  DMatrix y(x.rows, x.cols);
  for (std::int64_t i = 0; i < x.rows; ++i) {
    double mean = 0.0;
    for (std::int64_t j = 0; j < x.cols; ++j) mean += x.at(i, j) / d;
    double variance = 0.0;
    for (std::int64_t j = 0; j < x.cols; ++j) variance += (x.at(i, j) - mean) * (x.at(i, j) - mean) / d;
    for (std::int64_t j = 0; j < x.cols; ++j) {
      y.at(i, j) = (x.at(i, j) - mean) / std::sqrt(variance + eps);
      if (weight.cols > 0) y.at(i, j) = y.at(i, j) * weight.at(0, j) + bias.at(0, j);
    }
  }
  return y;
}

NormGrads ReferenceLayerNormBackward(const DMatrix& grad_y, const DMatrix& x, const DMatrix& weight, double eps) {
  const double d = static_cast<double>(x.cols);
  const DMatrix normed = ReferenceLayerNorm(x, DMatrix(), DMatrix(), eps);
  NormGrads grads{DMatrix(x.rows, x.cols), DMatrix(1, x.cols), DMatrix(1, x.cols)};
  for (std::int64_t i = 0; i < x.rows; ++i) {
    double mean = 0.0;
    for (std::int64_t j = 0; j < x.cols; ++j) mean += x.at(i, j) / d;
    double variance = 0.0;
    for (std::int64_t j = 0; j < x.cols; ++j) variance += (x.at(i, j) - mean) * (x.at(i, j) - mean) / d;
    const auto g = [&](std::int64_t j) { return grad_y.at(i, j) * (weight.cols > 0 ? weight.at(0, j) : 1.0); };
    double mean_g = 0.0;
    double mean_gn = 0.0;
    for (std::int64_t j = 0; j < x.cols; ++j) {
      mean_g += g(j) / d;
      mean_gn += g(j) * normed.at(i, j) / d;
    }
    for (std::int64_t j = 0; j < x.cols; ++j) {
      grads.x.at(i, j) = (g(j) - mean_g - normed.at(i, j) * mean_gn) / std::sqrt(variance + eps);
      grads.weight.at(0, j) += grad_y.at(i, j) * normed.at(i, j);
      grads.bias.at(0, j) += grad_y.at(i, j);
    }
  }
  return grads;
}

DMatrix ReferenceRotary(const DMatrix& x, std::int64_t num_heads, const Indices& positions,
                        const std::vector<float>& inv_freq, bool inverse) {
  DMatrix y = x;
  const std::int64_t head_dim = x.cols / num_heads;
  const std::int64_t half = head_dim / 2;
  for (std::int64_t i = 0; i < x.rows; ++i) {
    for (std::int64_t h = 0; h < num_heads; ++h) {
      for (std::int64_t j = 0; j < half; ++j) {
        const double angle = (inverse ? -1.0 : 1.0) * positions[i] * static_cast<double>(inv_freq[j]);
        const double a = x.at(i, h * head_dim + j);
        const double b = x.at(i, h * head_dim + j + half);
        y.at(i, h * head_dim + j) = a * std::cos(angle) - b * std::sin(angle);
        y.at(i, h * head_dim + j + half) = a * std::sin(angle) + b * std::cos(angle);
      }
    }
  }
  return y;
}

AttentionResult ReferenceAttention(const AttentionShape& shape, const DMatrix& q, const DMatrix& k, const DMatrix& v,
                                   const Indices& q_offsets, const Indices& k_offsets) {
  const std::int64_t d = shape.head_dim;
  AttentionResult result{DMatrix(q.rows, q.cols), DMatrix(q.rows, shape.num_heads)};
  for (std::size_t s = 0; s + 1 < q_offsets.size(); ++s) {
    const std::int64_t num_queries = q_offsets[s + 1] - q_offsets[s];
    const std::int64_t num_keys = k_offsets[s + 1] - k_offsets[s];
    for (std::int64_t i = 0; i < num_queries; ++i) {
      for (std::int64_t h = 0; h < shape.num_heads; ++h) {
        const std::int64_t row = q_offsets[s] + i;
        const std::int64_t kv = h / (shape.num_heads / shape.num_kv_heads);
        std::vector<double> scores(num_keys - num_queries + i + 1);
        const std::int64_t num_seen = static_cast<std::int64_t>(scores.size());
        const std::int64_t first = shape.window == 0 ? 0 : std::max<std::int64_t>(0, num_seen - shape.window);
        for (std::int64_t j = 0; j < first; ++j) scores[j] = -std::numeric_limits<double>::infinity();
        for (std::int64_t j = first; j < num_seen; ++j) {
          for (std::int64_t c = 0; c < d; ++c) {
            scores[j] += q.at(row, h * d + c) * k.at(k_offsets[s] + j, kv * d + c) * static_cast<double>(shape.scale);
          }
        }
        const double max = *std::max_element(scores.begin(), scores.end());
        double sum = 0.0;
        for (const double score : scores) sum += std::exp(score - max);
        result.log_sum_exp.at(row, h) = max + std::log(sum);
        for (std::int64_t j = first; j < num_seen; ++j) {
          for (std::int64_t c = 0; c < d; ++c) {
            result.out.at(row, h * d + c) += std::exp(scores[j] - max) / sum * v.at(k_offsets[s] + j, kv * d + c);
          }
        }
      }
    }
  }
  return result;
}

AttentionGrads ReferenceAttentionBackward(const AttentionShape& shape, const DMatrix& grad_out, const DMatrix& q,
                                          const DMatrix& k, const DMatrix& v, const Indices& offsets) {
  const std::int64_t d = shape.head_dim;
  const double scale = static_cast<double>(shape.scale);
  AttentionGrads grads{DMatrix(q.rows, q.cols), DMatrix(k.rows, k.cols), DMatrix(v.rows, v.cols)};
  for (std::size_t s = 0; s + 1 < offsets.size(); ++s) {
    for (std::int64_t i = offsets[s]; i < offsets[s + 1]; ++i) {
      for (std::int64_t h = 0; h < shape.num_heads; ++h) {
        const std::int64_t kv = h / (shape.num_heads / shape.num_kv_heads);
        const std::int64_t n = i - offsets[s] + 1;
        std::vector<double> p(n, 0.0);
        std::vector<double> grad_p(n, 0.0);
        double sum = 0.0;
        for (std::int64_t j = 0; j < n; ++j) {
          double score = 0.0;
          for (std::int64_t c = 0; c < d; ++c) {
            score += q.at(i, h * d + c) * k.at(offsets[s] + j, kv * d + c) * scale;
            grad_p[j] += grad_out.at(i, h * d + c) * v.at(offsets[s] + j, kv * d + c);
          }
          p[j] = std::exp(score);
          sum += p[j];
        }
        double mean_grad = 0.0;
        for (std::int64_t j = 0; j < n; ++j) {
          p[j] /= sum;
          mean_grad += p[j] * grad_p[j];
        }
        for (std::int64_t j = 0; j < n; ++j) {
          const double grad_score = p[j] * (grad_p[j] - mean_grad) * scale;
          for (std::int64_t c = 0; c < d; ++c) {
            grads.q.at(i, h * d + c) += grad_score * k.at(offsets[s] + j, kv * d + c);
            grads.k.at(offsets[s] + j, kv * d + c) += grad_score * q.at(i, h * d + c);
            grads.v.at(offsets[s] + j, kv * d + c) += p[j] * grad_out.at(i, h * d + c);
          }
        }
      }
    }
  }
  return grads;
}

DMatrix ReferenceActivate(Activation activation, const DMatrix& x) {
  DMatrix y = x;
  for (double& value : y.values) value = ActivationOf(activation, value);
  return y;
}

DMatrix ReferenceActivateBackward(Activation activation, const DMatrix& grad_y, const DMatrix& x) {
  DMatrix grad = grad_y;
  for (std::size_t i = 0; i < grad.values.size(); ++i) grad.values[i] *= ActivationSlope(activation, x.values[i]);
  return grad;
}

DMatrix ReferenceSwiGlu(const DMatrix& gate, const DMatrix& up) {
  DMatrix y = ReferenceActivate(Activation::kSilu, gate);
  for (std::size_t i = 0; i < y.values.size(); ++i) y.values[i] *= up.values[i];
  return y;
}

SwiGluGrads ReferenceSwiGluBackward(const DMatrix& grad_y, const DMatrix& gate, const DMatrix& up) {
  SwiGluGrads grads{grad_y, grad_y};
  for (std::size_t i = 0; i < grad_y.values.size(); ++i) {
    grads.gate.values[i] *= up.values[i] * ActivationSlope(Activation::kSilu, gate.values[i]);
    grads.up.values[i] *= ActivationOf(Activation::kSilu, gate.values[i]);
  }
  return grads;
}

DMatrix ReferenceGateMix(const DMatrix& a, const DMatrix& b, const DMatrix& mix, bool apply_sigmoid) {
  DMatrix out(a.rows, a.cols);
  for (std::int64_t i = 0; i < a.rows; ++i) {
    for (std::int64_t j = 0; j < a.cols; ++j) {
      const double m = MixAt(mix, j, apply_sigmoid);
      out.at(i, j) = (1.0 - m) * a.at(i, j) + m * b.at(i, j);
    }
  }
  return out;
}

GateMixGrads ReferenceGateMixBackward(const DMatrix& grad_out, const DMatrix& a, const DMatrix& b, const DMatrix& mix,
                                      bool apply_sigmoid) {
  GateMixGrads grads{grad_out, grad_out, DMatrix(1, mix.cols)};
  for (std::int64_t i = 0; i < a.rows; ++i) {
    for (std::int64_t j = 0; j < a.cols; ++j) {
      const double m = MixAt(mix, j, apply_sigmoid);
      const double slope = apply_sigmoid ? m * (1.0 - m) : 1.0;
      grads.a.at(i, j) *= 1.0 - m;
      grads.b.at(i, j) *= m;
      grads.mix.at(0, mix.cols == 1 ? 0 : j) += grad_out.at(i, j) * (b.at(i, j) - a.at(i, j)) * slope;
    }
  }
  return grads;
}

DMatrix ReferenceGatherRows(const DMatrix& x, const Indices& indices) {
  DMatrix y(indices.size(), x.cols);
  for (std::int64_t i = 0; i < y.rows; ++i) {
    for (std::int64_t j = 0; j < y.cols; ++j) y.at(i, j) = x.at(indices[i], j);
  }
  return y;
}

DMatrix ReferenceScatterAddRows(const DMatrix& grad_y, const Indices& indices, const DMatrix& grad_x) {
  DMatrix sum = grad_x;
  for (std::int64_t i = 0; i < grad_y.rows; ++i) {
    for (std::int64_t j = 0; j < grad_y.cols; ++j) sum.at(indices[i], j) += grad_y.at(i, j);
  }
  return sum;
}

DMatrix ReferencePoolColumns(Pooling pooling, const DMatrix& x, std::int64_t cols) {
  DMatrix y(x.rows, cols);
  for (std::int64_t i = 0; i < x.rows; ++i) {
    for (std::int64_t j = 0; j < cols; ++j) {
      const std::int64_t first = j * x.cols / cols;
      const std::int64_t last = (j + 1) * x.cols / cols;
      double sum = 0.0;
      double max = x.at(i, first);
      for (std::int64_t c = first; c < last; ++c) {
        sum += x.at(i, c);
        max = std::max(max, x.at(i, c));
      }
      y.at(i, j) = pooling == Pooling::kMax ? max : sum / static_cast<double>(last - first);
    }
  }
  return y;
}

LossResult ReferenceCrossEntropy(const DMatrix& logits, const Indices& targets, double scale) {
  LossResult result{DMatrix(1, logits.rows), logits, Indices(logits.rows)};
  for (std::int64_t i = 0; i < logits.rows; ++i) {
    std::int64_t best = 0;
    for (std::int64_t j = 1; j < logits.cols; ++j) {
      if (logits.at(i, j) > logits.at(i, best)) best = j;
    }
    const double max = logits.at(i, best);
    double sum = 0.0;
    for (std::int64_t j = 0; j < logits.cols; ++j) sum += std::exp(logits.at(i, j) - max);
    result.losses.at(0, i) = std::log(sum) + max - logits.at(i, targets[i]);
    result.argmax[i] = static_cast<std::int32_t>(best);
    for (std::int64_t j = 0; j < logits.cols; ++j) {
      result.grad.at(i, j) = scale * (std::exp(logits.at(i, j) - max) / sum - (j == targets[i] ? 1.0 : 0.0));
    }
  }
  return result;
}

LossResult ReferenceSquaredError(const DMatrix& x, const DMatrix& targets, double scale) {
  LossResult result{DMatrix(1, x.rows), x, {}};
  for (std::int64_t i = 0; i < x.rows; ++i) {
    const double difference = x.at(i, 0) - targets.at(0, i);
    result.losses.at(0, i) = difference * difference;
    result.grad.at(i, 0) = 2.0 * scale * difference;
  }
  return result;
}

void ReferenceAdamW(const AdamWParams& params, const DMatrix& grad, DMatrix* param, DMatrix* exp_avg,
                    DMatrix* exp_avg_sq) {
  const double beta1 = static_cast<double>(params.beta1);
  const double beta2 = static_cast<double>(params.beta2);
  for (std::size_t i = 0; i < grad.values.size(); ++i) {
    const double g = grad.values[i] * static_cast<double>(params.grad_scale);
    double& m = exp_avg->values[i];
    double& v = exp_avg_sq->values[i];
    double& p = param->values[i];
    m = beta1 * m + (1.0 - beta1) * g;
    v = beta2 * v + (1.0 - beta2) * g * g;
    const double m_hat = m / (1.0 - std::pow(beta1, static_cast<double>(params.step)));
    const double v_hat = v / (1.0 - std::pow(beta2, static_cast<double>(params.step)));
    p -= static_cast<double>(params.learning_rate) * (m_hat / (std::sqrt(v_hat) + static_cast<double>(params.epsilon)) +
                                                      static_cast<double>(params.weight_decay) * p);
  }
}

double ReferenceSumOfSquares(const DMatrix& x) {
  double sum = 0.0;
  for (const double value : x.values) sum += value * value;
  return sum;
}

double WeightedSum(const DMatrix& weight, const DMatrix& value) {
  double sum = 0.0;
  for (std::size_t i = 0; i < weight.values.size(); ++i) sum += weight.values[i] * value.values[i];
  return sum;
}

DMatrix NumericalGradient(const std::function<double(const DMatrix& x)>& f, const DMatrix& x) {
  // Near the cube root of float64's epsilon, where truncation and cancellation meet.
  constexpr double kStep = 6e-6;
  DMatrix grad(x.rows, x.cols);
  DMatrix moved = x;
  for (std::size_t i = 0; i < x.values.size(); ++i) {
    moved.values[i] = x.values[i] + kStep;
    const double above = f(moved);
    moved.values[i] = x.values[i] - kStep;
    const double below = f(moved);
    moved.values[i] = x.values[i];
    grad.values[i] = (above - below) / (2.0 * kStep);
  }
  return grad;
}

}  // namespace qst
