// Checkpoints that bitsandbytes itself wrote (testdata/bitsandbytes, made by bitsandbytes_golden.py): each comes into
// the store with the bits that it has, and the 4-bit backbone computes of it what transformers and bitsandbytes
// compute.
#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "proto/support/status_matchers.h"
#include "tests/oracle/golden_model.h"
#include "worker/checkpoint/file_io.h"
#include "worker/checkpoint/safetensors_reader.h"

namespace qst {
namespace {

namespace fs = std::filesystem;

constexpr char kRoot[] = "tests/oracle/testdata/bitsandbytes";
constexpr char kByHand[] = "QST_GOLDEN_BITSANDBYTES";

std::vector<std::unique_ptr<SafetensorsReader>> WeightFiles(const std::string& folder) {
  std::vector<std::unique_ptr<SafetensorsReader>> files;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
    if (entry.path().extension() != ".safetensors" || entry.path().filename() == kExpectedFile) continue;
    auto file = SafetensorsReader::Open(entry.path());
    QST_EXPECT_OK(file);
    files.push_back(*std::move(file));
  }
  return files;
}

std::string BytesOf(const SafetensorsReader& file, const std::string& name) {
  const SafetensorsReader::RawTensor raw = file.Raw(name);
  EXPECT_NE(raw.data, nullptr) << name << " is not in " << file.path();
  return raw.data == nullptr ? "" : std::string(reinterpret_cast<const char*>(raw.data), raw.num_bytes);
}

// Every field but the spaces around them.
void ExpectSameState(const std::string& expected_text, const std::string& actual_text) {
  const auto expected = nlohmann::json::parse(expected_text);
  const auto actual = nlohmann::json::parse(actual_text);
  EXPECT_EQ(actual, expected);
}

// All that the files hold is in the store: codes, constants of both kinds, tables of nested constants, norms, biases,
// embedding and head, bit by bit. Returns the number of 4-bit weights.
int ExpectSameBits(const std::string& folder, const StoredModel& model) {
  int num_quantized = 0;
  std::size_t num_tensors = 0;
  for (const auto& file : WeightFiles(folder)) {
    for (const std::string& name : file->names()) {
      SCOPED_TRACE(name);
      ++num_tensors;
      const std::string expected = BytesOf(*file, name);
      const std::string actual = BytesOf(model.weights(), name);
      if (absl::StrContains(name, kQuantStateSuffix)) {
        ++num_quantized;
        ExpectSameState(expected, actual);
      } else if (absl::EndsWith(name, kQuantMapSuffix) && !absl::EndsWith(name, kNestedQuantMapSuffix)) {
        // As numbers: the sign of FP4's second zero is the file's own.
        std::vector<float> theirs(16), ours(16);
        QST_EXPECT_OK(file->ReadFloat(name, 0, 16, theirs.data()));
        QST_EXPECT_OK(model.weights().ReadFloat(name, 0, 16, ours.data()));
        EXPECT_EQ(ours, theirs);
      } else {
        EXPECT_TRUE(actual == expected) << actual.size() << " bytes against " << expected.size();
      }
    }
  }
  EXPECT_EQ(model.weights().names().size(), num_tensors);
  return num_quantized;
}

class BitsandbytesGoldenTest : public GoldenModelTest {
 protected:
  void Check(const std::string& folder, bool checks_elements) {
    SCOPED_TRACE(folder);
    // What imports ask for if nobody says anything; the file's own kind wins.
    const auto model = Import(folder, StoreQuantization{});
    EXPECT_GT(ExpectSameBits(folder, *model), 0);
    ExpectSameKind(folder, *model);
    // A GPU rounds factors of products with 4-bit weights to a half type.
    const bool is_rounded = ctx_.device == DeviceType::kCuda;
    const double tolerance = is_rounded ? 3e-2 : 1e-4;
    std::optional<double> element_tolerance;
    if (checks_elements) element_tolerance = is_rounded ? 2 * tolerance : tolerance;
    Compare(*model, folder, tolerance, element_tolerance);
  }

  // The manifest says what transformers' config says.
  static void ExpectSameKind(const std::string& folder, const StoredModel& model) {
    const auto text = ReadSmallFile(folder + "/config.json", kStoreMaxJsonBytes);
    QST_ASSERT_OK(text);
    const auto config = nlohmann::json::parse(*text)["quantization_config"];
    ASSERT_TRUE(model.manifest().quantization.has_value());
    const StoreQuantization& quantization = *model.manifest().quantization;
    EXPECT_EQ(Quant4TypeName(quantization.type), config["bnb_4bit_quant_type"].get<std::string>());
    EXPECT_EQ(quantization.double_quant, config["bnb_4bit_use_double_quant"].get<bool>());
    EXPECT_EQ(quantization.block_size, absl::EndsWith(folder, "block_128") ? 128 : 64);
  }
};
QST_INSTANTIATE_DEVICE_TEST(BitsandbytesGoldenTest);

TEST_P(BitsandbytesGoldenTest, ComesInAsItIsAndComputesTheSame) {
  const std::vector<std::string> folders = GoldenFolders(kRoot);
  ASSERT_GE(folders.size(), 22u);
  for (const std::string& folder : folders) Check(folder, /*checks_elements=*/true);
}

// Real models, by hand: bitsandbytes_golden.py --quantize.
TEST_P(BitsandbytesGoldenTest, ModelsNamedByTheEnvironmentToo) {
  const std::vector<std::string> folders = GoldenFoldersOf(kByHand);
  if (folders.empty()) GTEST_SKIP() << "no $" << kByHand;
  for (const std::string& folder : folders) Check(folder, /*checks_elements=*/ctx_.device == DeviceType::kCpu);
}

// The golden models have what makes a file hard: without these cases the test above would say less.
TEST(BitsandbytesGoldenFilesTest, CoverWhatTheySay) {
  const auto largest = [](const std::string& name, absl::string_view suffix) {
    std::int64_t elems = 0;
    for (const auto& file : WeightFiles(absl::StrCat(kRoot, "/", name))) {
      for (const std::string& tensor : file->names()) {
        if (absl::EndsWith(tensor, suffix)) elems = std::max(elems, file->Find(tensor)->num_elems);
      }
    }
    return elems;
  };
  EXPECT_GE(largest("opt_nested", kNestedAbsmaxSuffix), 2);
  EXPECT_EQ(largest("opt_nf4_single", kNestedAbsmaxSuffix), 0);
  EXPECT_GE(WeightFiles(absl::StrCat(kRoot, "/mistral_sharded")).size(), 3u);
  const auto storage = WeightFiles(absl::StrCat(kRoot, "/qwen2_storage"));
  ASSERT_EQ(storage.size(), 1u);
  EXPECT_EQ(storage[0]->Find("model.layers.0.mlp.up_proj.weight")->dtype, DType::kBF16);
}

}  // namespace
}  // namespace qst
