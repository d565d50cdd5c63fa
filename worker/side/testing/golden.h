// Reads the golden files in worker/side/testdata, made by tests/oracle/side_network_golden.py.
#ifndef QST_WORKER_SIDE_TESTING_GOLDEN_H_
#define QST_WORKER_SIDE_TESTING_GOLDEN_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "kernels/dtype.h"
#include "kernels/tensor.h"
#include "kernels/testing/test_memory.h"
#include "nlohmann/json.hpp"
#include "worker/side/side_network.h"

namespace qst {

// One case, with the memory that its views point to: every device can reach it.
class GoldenCase {
 public:
  explicit GoldenCase(const std::string& name);
  static std::vector<std::string> Names();

  const SideNetworkConfig& config() const { return config_; }
  const FrozenHead& frozen() const { return frozen_; }
  const SideBatch& batch() const { return batch_; }
  // The expected values.
  const nlohmann::json& expected() const { return case_; }
  const nlohmann::json& train() const { return train_; }
  // A source of the hidden states in this type.
  HiddenStateSource HiddenStates(DType dtype) const;
  // Sets the network's parameters to the case's.
  void LoadParameters(Parameters* parameters) const;

 private:
  nlohmann::json case_;
  nlohmann::json train_;
  SideNetworkConfig config_;
  FrozenHead frozen_;
  SideBatch batch_;
  TestVector<float> final_norm_;
  TestVector<float> final_norm_bias_;
  TestVector<float> projection_;
  TestVector<float> lm_head_;
  TestVector<float> hidden_f32_;           // [N + 1, T, d]
  TestVector<std::uint16_t> hidden_bf16_;  // the same; exact
};

}  // namespace qst

#endif  // QST_WORKER_SIDE_TESTING_GOLDEN_H_
