#include "worker/testing/reference_llama.h"

#include <algorithm>
#include <cmath>
#include <string>

namespace qst {
namespace {

using Vector = std::vector<double>;

Vector Multiply(const std::vector<float>& weight, const std::vector<float>* bias, const Vector& x) {
  const std::size_t k = x.size();
  const std::size_t n = weight.size() / k;
  Vector y(n, 0.0);
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t j = 0; j < k; ++j) y[i] += static_cast<double>(weight[i * k + j]) * x[j];
    if (bias != nullptr) y[i] += (*bias)[i];
  }
  return y;
}

Vector Normalise(const std::vector<float>& weight, const Vector& x, double eps) {
  double sum = 0.0;
  for (double value : x) sum += value * value;
  const double scale = 1.0 / std::sqrt(sum / static_cast<double>(x.size()) + eps);
  Vector y(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) y[i] = x[i] * scale * weight[i];
  return y;
}

void Rotate(Vector& x, std::int64_t heads, std::int64_t head_dim, std::int64_t position,
            const std::vector<float>& freq) {
  const std::int64_t half = head_dim / 2;
  for (std::int64_t h = 0; h < heads; ++h) {
    for (std::int64_t j = 0; j < half; ++j) {
      const double angle = static_cast<double>(position) * freq[j];
      double& a = x[h * head_dim + j];
      double& b = x[h * head_dim + half + j];
      const double rotated_a = a * std::cos(angle) - b * std::sin(angle);
      b = b * std::cos(angle) + a * std::sin(angle);
      a = rotated_a;
    }
  }
}

}  // namespace

std::vector<std::vector<double>> ReferenceHiddenStates(const TinyModel& model,
                                                       const std::vector<std::int32_t>& tokens) {
  const ModelConfig& c = model.config;
  const std::vector<float> freq = RotaryInverseFrequencies(c);
  const auto tensor = [&](const std::string& name) -> const std::vector<float>& { return model.tensors.at(name); };
  const auto bias = [&](const std::string& name) -> const std::vector<float>* {
    const auto found = model.tensors.find(name);
    return found == model.tensors.end() ? nullptr : &found->second;
  };
  const std::int64_t group = c.num_heads / c.num_kv_heads;

  std::vector<Vector> rows(tokens.size());
  for (std::size_t t = 0; t < tokens.size(); ++t) {
    const auto begin = tensor("model.embed_tokens.weight").begin() + tokens[t] * c.hidden_size;
    rows[t].assign(begin, begin + c.hidden_size);
  }
  std::vector<std::vector<double>> states;
  const auto record = [&] {
    std::vector<double> all;
    for (const Vector& row : rows) all.insert(all.end(), row.begin(), row.end());
    states.push_back(std::move(all));
  };
  record();
  for (std::int64_t layer = 0; layer < c.num_layers; ++layer) {
    const std::string prefix = "model.layers." + std::to_string(layer) + ".";
    const auto linear = [&](const std::string& name, const Vector& x) {
      return Multiply(tensor(prefix + name + ".weight"), bias(prefix + name + ".bias"), x);
    };
    std::vector<Vector> keys;
    std::vector<Vector> values;
    for (std::size_t t = 0; t < rows.size(); ++t) {
      Vector& x = rows[t];
      const Vector normed = Normalise(tensor(prefix + "input_layernorm.weight"), x, c.norm_eps);
      Vector q = linear("self_attn.q_proj", normed);
      keys.push_back(linear("self_attn.k_proj", normed));
      values.push_back(linear("self_attn.v_proj", normed));
      Rotate(q, c.num_heads, c.head_dim, static_cast<std::int64_t>(t), freq);
      Rotate(keys.back(), c.num_kv_heads, c.head_dim, static_cast<std::int64_t>(t), freq);
      Vector attended(c.q_size(), 0.0);
      for (std::int64_t h = 0; h < c.num_heads; ++h) {
        const std::int64_t kv = h / group * c.head_dim;
        // Those before the window stay so low that they have no weight.
        const std::size_t window = static_cast<std::size_t>(c.WindowOf(layer));
        const std::size_t first = window == 0 || t + 1 <= window ? 0 : t + 1 - window;
        Vector scores(t + 1, -1e300);
        for (std::size_t j = first; j <= t; ++j) {
          scores[j] = 0.0;
          for (std::int64_t i = 0; i < c.head_dim; ++i) scores[j] += q[h * c.head_dim + i] * keys[j][kv + i];
          scores[j] /= std::sqrt(static_cast<double>(c.head_dim));
        }
        const double highest = *std::max_element(scores.begin(), scores.end());
        double sum = 0.0;
        for (double& score : scores) sum += (score = std::exp(score - highest));
        for (std::size_t j = 0; j <= t; ++j) {
          for (std::int64_t i = 0; i < c.head_dim; ++i) {
            attended[h * c.head_dim + i] += scores[j] / sum * values[j][kv + i];
          }
        }
      }
      const Vector projected = linear("self_attn.o_proj", attended);
      for (std::size_t i = 0; i < x.size(); ++i) x[i] += projected[i];
      const Vector normed2 = Normalise(tensor(prefix + "post_attention_layernorm.weight"), x, c.norm_eps);
      Vector gate = linear("mlp.gate_proj", normed2);
      const Vector up = linear("mlp.up_proj", normed2);
      for (std::size_t i = 0; i < gate.size(); ++i) gate[i] = gate[i] / (1.0 + std::exp(-gate[i])) * up[i];
      const Vector down = linear("mlp.down_proj", gate);
      for (std::size_t i = 0; i < x.size(); ++i) x[i] += down[i];
    }
    record();
  }
  return states;
}

}  // namespace qst
