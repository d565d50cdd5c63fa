// Export in both forms, and that a model survives the way out of the store and back in.
#include "worker/checkpoint/export_model.h"

#include <cstring>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "kernels/dtype_convert.h"
#include "kernels/quant/quant4.h"
#include "nlohmann/json.hpp"
#include "proto/support/status_matchers.h"
#include "worker/checkpoint/huggingface_folder.h"
#include "worker/checkpoint/import_model.h"
#include "worker/checkpoint/stored_model.h"
#include "worker/checkpoint/test_files.h"

namespace qst {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

constexpr char kGgufFile[] = "worker/checkpoint/testdata/tiny_llama.gguf";

// Imports the tiny model as "store" (NF4, or what `quantization` says).
void MakeStore(const TempFolder& folder, const std::optional<StoreQuantization>& quantization = StoreQuantization{}) {
  ImportOptions options;
  options.source = kGgufFile;
  options.destination = folder.Path("store");
  options.quantization = quantization;
  QST_ASSERT_OK(ImportModel(options, nullptr));
}

ExportOptions Options(const TempFolder& folder, bool dequantize, DType dtype = DType::kF32) {
  ExportOptions options;
  options.model = folder.Path("store");
  options.destination = folder.Path("out");
  options.dequantize = dequantize;
  options.dtype = dtype;
  return options;
}

// What the backbone computes with, as float32.
std::vector<float> StoredValues(const StoredModel& model, const ModelTensor& tensor) {
  if (tensor.shape.size() == 2) {
    const auto weight = model.Weight(tensor.name);
    EXPECT_TRUE(weight.ok()) << weight.status();
    if (weight->is_quantized) {
      std::vector<float> values(static_cast<std::size_t>(tensor.num_elems()));
      DequantizeRange(weight->quant4, 0, tensor.num_elems(), values.data());
      return values;
    }
  }
  const auto floats = model.Floats(tensor.name);
  EXPECT_TRUE(floats.ok()) << floats.status();
  return *floats;
}

float Rounded(float value, DType dtype) {
  if (dtype == DType::kBF16) return BF16ToF32(F32ToBF16(value));
  return dtype == DType::kF16 ? F16ToF32(F32ToF16(value)) : value;
}

TEST(ExportModelTest, DequantizedWeightsAreThoseThatTheBackboneComputesWith) {
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    TempFolder folder;
    MakeStore(folder);
    QST_ASSERT_OK(ExportModel(Options(folder, true, dtype), nullptr));
    const auto model = StoredModel::Open(folder.Path("store"));
    QST_ASSERT_OK(model);
    const auto exported = HuggingFaceFolder::Open(folder.Path("out"));
    QST_ASSERT_OK(exported);
    const std::vector<ModelTensor> tensors = ModelTensors((*model)->config());
    EXPECT_EQ((*exported)->names().size(), tensors.size());
    for (const ModelTensor& tensor : tensors) {
      const TensorInfo* info = (*exported)->Find(tensor.name);
      ASSERT_NE(info, nullptr) << tensor.name;
      EXPECT_EQ(info->dtype, dtype);
      EXPECT_EQ(info->shape, tensor.shape);
      std::vector<float> expected = StoredValues(**model, tensor);
      for (float& value : expected) value = Rounded(value, dtype);
      std::vector<float> actual(expected.size());
      QST_ASSERT_OK((*exported)->ReadFloat(tensor.name, 0, tensor.num_elems(), actual.data()));
      EXPECT_EQ(std::memcmp(actual.data(), expected.data(), actual.size() * sizeof(float)), 0) << tensor.name;
    }
    const auto config = nlohmann::json::parse(ReadFile(folder.Path("out/config.json")));
    EXPECT_FALSE(config.contains("quantization_config"));
    EXPECT_EQ(config["torch_dtype"], dtype == DType::kF32 ? "float32" : dtype == DType::kF16 ? "float16" : "bfloat16");
    EXPECT_EQ(ReadFile(folder.Path("out/tokenizer.json")), ReadFile(folder.Path("store/tokenizer.json")));
    EXPECT_FALSE(fs::exists(folder.Path("out/qst_model.json")));
  }
}

TEST(ExportModelTest, ImportedAgainUnquantizedItHasTheSameValues) {
  TempFolder folder;
  MakeStore(folder, StoreQuantization{Quant4Type::kFP4, 128, false});
  QST_ASSERT_OK(ExportModel(Options(folder, true), nullptr));
  ImportOptions again;
  again.source = folder.Path("out");
  again.destination = folder.Path("again");
  again.quantization.reset();
  QST_ASSERT_OK(ImportModel(again, nullptr));
  const auto expected = StoredModel::Open(folder.Path("store"));
  const auto actual = StoredModel::Open(folder.Path("again"));
  QST_ASSERT_OK(expected);
  QST_ASSERT_OK(actual);
  for (const ModelTensor& tensor : ModelTensors((*expected)->config())) {
    EXPECT_EQ(StoredValues(**actual, tensor), StoredValues(**expected, tensor)) << tensor.name;
  }
}

TEST(ExportModelTest, AsStoredItIsTheStoreWithoutItsOwnFile) {
  TempFolder folder;
  MakeStore(folder);
  QST_ASSERT_OK(ExportModel(Options(folder, false), nullptr));
  std::vector<std::string> names;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder.Path("store"))) {
    const std::string name = entry.path().filename().string();
    if (name == "qst_model.json") {
      EXPECT_FALSE(fs::exists(folder.Path("out/" + name)));
      continue;
    }
    EXPECT_TRUE(ReadFile(folder.Path("out/" + name)) == ReadFile(entry.path().string())) << name;
    names.push_back(name);
  }
  EXPECT_GE(names.size(), 4u);  // weights, config, two of the tokenizer
}

TEST(ExportModelTest, ManyShardsHoldWhatOneFileHolds) {
  TempFolder folder;
  MakeStore(folder);
  ExportOptions options = Options(folder, true);
  QST_ASSERT_OK(ExportModel(options, nullptr));
  options.destination = folder.Path("shards");
  options.max_shard_bytes = 20'000;
  QST_ASSERT_OK(ExportModel(options, nullptr));
  EXPECT_FALSE(fs::exists(folder.Path("shards/model.safetensors")));
  const auto index = nlohmann::json::parse(ReadFile(folder.Path("shards/model.safetensors.index.json")));
  const auto one = HuggingFaceFolder::Open(folder.Path("out"));
  const auto many = HuggingFaceFolder::Open(folder.Path("shards"));
  QST_ASSERT_OK(one);
  QST_ASSERT_OK(many);
  EXPECT_EQ((*many)->names().size(), (*one)->names().size());
  std::int64_t total = 0;
  for (const std::string& name : (*one)->names()) {
    const std::int64_t num_elems = (*one)->Find(name)->num_elems;
    total += 4 * num_elems;
    std::vector<float> expected(static_cast<std::size_t>(num_elems));
    std::vector<float> actual(expected.size());
    QST_ASSERT_OK((*one)->ReadFloat(name, 0, num_elems, expected.data()));
    QST_ASSERT_OK((*many)->ReadFloat(name, 0, num_elems, actual.data()));
    EXPECT_EQ(actual, expected) << name;
    const std::string file = index["weight_map"][name].get<std::string>();
    EXPECT_LE(fs::file_size(folder.Path("shards/" + file)), 20'000 + 4096u) << file;  // and a header
  }
  EXPECT_EQ(index["metadata"]["total_size"], total);
}

TEST(ExportModelTest, ProgressGrowsToTheTotal) {
  for (const bool dequantize : {true, false}) {
    TempFolder folder;
    MakeStore(folder);
    std::int64_t last = 0;
    std::int64_t total = -1;
    QST_ASSERT_OK(
        ExportModel(Options(folder, dequantize), [&](std::int64_t done, std::int64_t all, absl::string_view what) {
          EXPECT_GT(done, last);
          EXPECT_FALSE(what.empty());
          last = done;
          total = all;
          return true;
        }));
    EXPECT_EQ(last, total);
  }
}

TEST(ExportModelTest, CancellingLeavesNothing) {
  for (const bool dequantize : {true, false}) {
    TempFolder folder;
    MakeStore(folder);
    for (int stop_at = 0; stop_at < (dequantize ? 20 : 1); stop_at += 3) {
      int calls = 0;
      EXPECT_THAT(ExportModel(Options(folder, dequantize),
                              [&](std::int64_t, std::int64_t, absl::string_view) { return calls++ < stop_at; }),
                  StatusIs(absl::StatusCode::kCancelled));
      EXPECT_FALSE(fs::exists(folder.Path("out")));
      EXPECT_FALSE(fs::exists(folder.Path("out.exporting")));
    }
  }
}

TEST(ExportModelTest, WhatIsThereAlreadyIsLeftAlone) {
  TempFolder folder;
  MakeStore(folder);
  fs::create_directory(folder.Path("out"));
  EXPECT_THAT(ExportModel(Options(folder, true), nullptr), StatusIs(absl::StatusCode::kAlreadyExists));
  EXPECT_TRUE(fs::is_empty(folder.Path("out")));
  fs::remove(folder.Path("out"));
  // Also what comes into being while the export runs.
  EXPECT_THAT(ExportModel(Options(folder, true),
                          [&](std::int64_t, std::int64_t, absl::string_view) {
                            fs::create_directory(folder.Path("out"));
                            return true;
                          }),
              StatusIs(absl::StatusCode::kAlreadyExists));
  EXPECT_TRUE(fs::is_empty(folder.Path("out")));
  EXPECT_FALSE(fs::exists(folder.Path("out.exporting")));
}

TEST(ExportModelTest, ASecondExportToTheSamePlaceIsRefusedWhileOneRuns) {
  TempFolder folder;
  MakeStore(folder);
  absl::Status second = absl::OkStatus();
  QST_ASSERT_OK(ExportModel(Options(folder, true), [&](std::int64_t, std::int64_t, absl::string_view) {
    if (second.ok()) second = ExportModel(Options(folder, true), nullptr);
    return true;
  }));
  EXPECT_THAT(second, StatusIs(absl::StatusCode::kAlreadyExists, HasSubstr("another export")));
}

TEST(ExportModelTest, BadRequestsAreNamed) {
  TempFolder folder;
  MakeStore(folder);
  ExportOptions options = Options(folder, true, DType::kU8);
  EXPECT_THAT(ExportModel(options, nullptr), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("f32, bf16")));
  options = Options(folder, true);
  options.max_shard_bytes = 0;
  EXPECT_THAT(ExportModel(options, nullptr), StatusIs(absl::StatusCode::kInvalidArgument));
  options = Options(folder, true);
  options.model = folder.Path("none");
  EXPECT_THAT(ExportModel(options, nullptr), StatusIs(absl::StatusCode::kNotFound, HasSubstr("no stored model")));
  options = Options(folder, true);
  options.destination = folder.Path("no/such/place");
  EXPECT_THAT(ExportModel(options, nullptr), StatusIs(absl::StatusCode::kNotFound, HasSubstr("no/such")));
}

TEST(ExportModelTest, DamagedWeightsAreNotHandedOut) {
  TempFolder folder;
  MakeStore(folder);
  std::string weights = ReadFile(folder.Path("store/model.safetensors"));
  weights.back() = static_cast<char>(weights.back() ^ 1);
  folder.Write("store/model.safetensors", weights);
  EXPECT_THAT(ExportModel(Options(folder, false), nullptr),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("SHA-256")));
  EXPECT_FALSE(fs::exists(folder.Path("out")));
}

TEST(ExportModelTest, ValuesTooLargeForHalfPrecisionAreNamed) {
  TempFolder folder;
  MakeStore(folder, std::nullopt);
  QST_ASSERT_OK(ExportModel(Options(folder, true), nullptr));
  // A norm weight of 1e6, by way of a Hugging Face folder.
  const auto reader = SafetensorsReader::Open(folder.Path("out/model.safetensors"));
  QST_ASSERT_OK(reader);
  std::string weights = ReadFile(folder.Path("out/model.safetensors"));
  weights.replace((*reader)->Raw("model.norm.weight").file_offset + 4 * 5, 4, Bytes(1e6f));
  folder.Write("out/model.safetensors", weights);
  ImportOptions import;
  import.source = folder.Path("out");
  import.destination = folder.Path("large");
  import.quantization.reset();
  QST_ASSERT_OK(ImportModel(import, nullptr));
  ExportOptions options = Options(folder, true, DType::kF16);
  options.model = folder.Path("large");
  options.destination = folder.Path("half");
  EXPECT_THAT(ExportModel(options, nullptr),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("'model.norm.weight': element 5 is 1e+06")));
  EXPECT_FALSE(fs::exists(folder.Path("half")));
}

}  // namespace
}  // namespace qst
