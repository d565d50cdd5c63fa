// The float path against transformers: every hidden state and the logits of tiny models of every family and variant
// (testdata/backbone, made by backbone_golden.py), through the same import, store, stages and head as any model.
#include <optional>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "tests/oracle/golden_model.h"

namespace qst {
namespace {

constexpr char kRoot[] = "tests/oracle/testdata/backbone";
constexpr char kByHand[] = "QST_GOLDEN_MODELS";

class BackboneGoldenTest : public GoldenModelTest {
 protected:
  // Unquantized: the file's numbers, in float32.
  void Check(const std::string& folder, bool checks_elements) {
    SCOPED_TRACE(folder);
    const auto model = Import(folder, std::nullopt);
    // A GPU rounds factors of products with 16-bit weights to their type.
    const bool is_rounded = ctx_.device == DeviceType::kCuda && model->config().torch_dtype != "float32";
    const double tolerance = is_rounded ? 3e-2 : 1e-4;
    std::optional<double> element_tolerance;
    // Single elements that nearly cancel are off by more than their row.
    if (checks_elements) element_tolerance = is_rounded ? 2 * tolerance : tolerance;
    Compare(*model, folder, tolerance, element_tolerance);
  }
};
QST_INSTANTIATE_DEVICE_TEST(BackboneGoldenTest);

TEST_P(BackboneGoldenTest, EveryHiddenStateAndTheLogitsAgreeWithTransformers) {
  const std::vector<std::string> folders = GoldenFolders(kRoot);
  ASSERT_GE(folders.size(), 16u);
  for (const std::string& folder : folders) Check(folder, /*checks_elements=*/true);
}

// Real models, by hand: backbone_golden.py --of FOLDER.
TEST_P(BackboneGoldenTest, ModelsNamedByTheEnvironmentAgreeToo) {
  const std::vector<std::string> folders = GoldenFoldersOf(kByHand);
  if (folders.empty()) GTEST_SKIP() << "no $" << kByHand;
  // Real models have a few channels of thousands, in which layers cancel: elements are as exact as these allow.
  for (const std::string& folder : folders) Check(folder, /*checks_elements=*/ctx_.device == DeviceType::kCpu);
}

}  // namespace
}  // namespace qst
