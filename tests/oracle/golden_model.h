// Testonly: models whose hidden states and logits another program computed. A golden folder is a Hugging Face folder
// with expected.safetensors beside the weights: tokens [T], hidden_states [N + 1, T, d] (the residual stream, before
// the last norm), logits [T, V]. backbone_golden.py and bitsandbytes_golden.py make them.
#ifndef QST_TESTS_ORACLE_GOLDEN_MODEL_H_
#define QST_TESTS_ORACLE_GOLDEN_MODEL_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "kernels/device_memory.h"
#include "kernels/tensor.h"
#include "worker/checkpoint/store_format.h"
#include "worker/checkpoint/stored_model.h"
#include "worker/testing/test_device.h"

namespace qst {

inline constexpr char kExpectedFile[] = "expected.safetensors";

// The golden folders in a folder, sorted.
std::vector<std::string> GoldenFolders(const std::string& root);
// Those named in an environment variable, separated by colons.
std::vector<std::string> GoldenFoldersOf(const char* variable);

// Fixture: imports golden folders and compares what the backbone computes of them. Failures are reported to GoogleTest.
class GoldenModelTest : public DeviceTest {
 protected:
  // Imports a copy of the folder, with a tokenizer of its own if it has none.
  static std::unique_ptr<StoredModel> Import(const std::string& folder,
                                             const std::optional<StoreQuantization>& quantization);

  // Compares every hidden state and the logits. tolerance: of a token's vector, the Euclidean norm of its error
  // relative to its own. element_tolerance: of an element, relative to itself or to the root mean square of its row,
  // whichever is larger; not set: printed only.
  void Compare(const StoredModel& model, const std::string& folder, double tolerance,
               std::optional<double> element_tolerance);

 private:
  std::vector<std::vector<float>> HiddenStates(const StoredModel& model, const std::vector<std::int32_t>& tokens,
                                               DeviceMemory* residual);
  std::vector<float> Logits(const StoredModel& model, const MatrixView& last);
};

}  // namespace qst

#endif  // QST_TESTS_ORACLE_GOLDEN_MODEL_H_
