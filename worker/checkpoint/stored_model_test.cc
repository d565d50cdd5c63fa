// A stored model, as import makes it, and what happens when its files are damaged.
#include "worker/checkpoint/stored_model.h"

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <memory>
#include <string>

#include "gtest/gtest.h"
#include "proto/support/status_matchers.h"
#include "worker/checkpoint/import_model.h"
#include "worker/checkpoint/test_files.h"

namespace qst {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

constexpr char kGgufFile[] = "worker/checkpoint/testdata/tiny_llama.gguf";

ImportOptions Options(const std::string& source, const std::string& destination) {
  ImportOptions options;
  options.source = source;
  options.destination = destination;
  return options;
}

absl::StatusOr<std::unique_ptr<StoredModel>> ImportAndOpen(const ImportOptions& options) {
  const absl::Status status = ImportModel(options, nullptr);
  if (!status.ok()) return status;
  return StoredModel::Open(options.destination);
}

TEST(StoredModelTest, ViewsAreAlignedAndInTheMapping) {
  TempFolder folder;
  const auto model = ImportAndOpen(Options(kGgufFile, folder.Path("store")));
  QST_ASSERT_OK(model);
  for (const ModelTensor& tensor : ModelTensors((*model)->config())) {
    if (tensor.shape.size() != 2) continue;
    const auto weight = (*model)->Weight(tensor.name);
    QST_ASSERT_OK(weight);
    const void* data = weight->is_quantized ? weight->quant4.packed : weight->dense.data;
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(data) % 64, 0u) << tensor.name;
  }
  const auto embedding = (*model)->Embedding();
  QST_ASSERT_OK(embedding);
  EXPECT_EQ(embedding->rows, 48);
  EXPECT_EQ(embedding->dtype, DType::kF16);
  const auto head = (*model)->Head();
  QST_ASSERT_OK(head);
  EXPECT_NE(head->data, embedding->data);
}

TEST(StoredModelTest, BytesByPartAddUpToTheFile) {
  TempFolder folder;
  const auto model = ImportAndOpen(Options(kGgufFile, folder.Path("store")));
  QST_ASSERT_OK(model);
  const StoreManifest& manifest = (*model)->manifest();
  EXPECT_EQ(manifest.weights_bytes, fs::file_size(folder.Path("store/model.safetensors")));
  EXPECT_EQ(manifest.name, "store");
  EXPECT_EQ(manifest.num_parameters, (*model)->config().NumParameters());
  std::int64_t layers = 0;
  for (int i = 0; i < 2; ++i) layers += (*model)->LayerBytes(i);
  EXPECT_EQ(layers, static_cast<std::int64_t>(manifest.layers_bytes));
  EXPECT_EQ((*model)->EmbeddingBytes(), 48 * 32 * 2);
  EXPECT_EQ((*model)->HeadBytes(), 48 * 32 * 2 + 32 * 4);
  const std::int64_t header =
      static_cast<std::int64_t>(manifest.weights_bytes) - layers - (*model)->EmbeddingBytes() - (*model)->HeadBytes();
  EXPECT_GT(header, 0);
  EXPECT_LT(header, 64 << 10);
  EXPECT_THAT((*model)->Summary(), HasSubstr("nf4"));
}

TEST(StoredModelTest, DamagedStoresAreRefused) {
  TempFolder folder;
  QST_ASSERT_OK(ImportModel(Options(kGgufFile, folder.Path("store")), nullptr));
  EXPECT_THAT(StoredModel::Open(folder.path()), StatusIs(absl::StatusCode::kNotFound, HasSubstr("no stored model in")));
  const std::string weights = ReadFile(folder.Path("store/model.safetensors"));
  const std::string manifest = ReadFile(folder.Path("store/qst_model.json"));

  folder.Write("store/model.safetensors", weights.substr(0, weights.size() - 1));
  EXPECT_THAT(StoredModel::Open(folder.Path("store")), StatusIs(absl::StatusCode::kDataLoss, HasSubstr("cut short")));

  // One bit of a tensor: only the checksum can tell.
  std::string flipped = weights;
  flipped[flipped.size() / 2] = static_cast<char>(flipped[flipped.size() / 2] ^ 1);
  folder.Write("store/model.safetensors", flipped);
  const auto model = StoredModel::Open(folder.Path("store"));
  QST_ASSERT_OK(model);
  EXPECT_THAT((*model)->Verify(), StatusIs(absl::StatusCode::kDataLoss, HasSubstr("SHA-256")));
  folder.Write("store/model.safetensors", weights);

  folder.Write("store/qst_model.json", "{}");
  EXPECT_THAT(StoredModel::Open(folder.Path("store")),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("qst_model.json")));
  folder.Write("store/qst_model.json", R"({"format_version":2})");
  EXPECT_THAT(StoredModel::Open(folder.Path("store")),
              StatusIs(absl::StatusCode::kUnimplemented, HasSubstr("version 2")));
  folder.Write("store/qst_model.json", manifest);
  QST_EXPECT_OK(StoredModel::Open(folder.Path("store")));
}

// Replaces a text of the weight file by another of the same length, and opens weight 0's view.
absl::Status WeightAfter(const TempFolder& folder, const std::string& weights, const std::string& from,
                         const std::string& to) {
  EXPECT_EQ(from.size(), to.size());
  std::string changed = weights;
  std::uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, weights.data(), sizeof(header_bytes));
  const std::size_t at = changed.find(from, 8 + header_bytes);
  EXPECT_NE(at, std::string::npos) << from;
  changed.replace(at, from.size(), to);
  folder.Write("store/model.safetensors", changed);
  const auto model = StoredModel::Open(folder.Path("store"));
  if (!model.ok()) return model.status();
  return (*model)->Weight("model.layers.0.self_attn.q_proj.weight").status();
}

TEST(StoredModelTest, PartsOfAWeightThatContradictEachOtherAreRefused) {
  TempFolder folder;
  QST_ASSERT_OK(ImportModel(Options(kGgufFile, folder.Path("store")), nullptr));
  const std::string weights = ReadFile(folder.Path("store/model.safetensors"));
  const auto kDataLoss = absl::StatusCode::kDataLoss;
  QST_EXPECT_OK(WeightAfter(folder, weights, "\"blocksize\":64", "\"blocksize\":64"));
  EXPECT_THAT(WeightAfter(folder, weights, "\"blocksize\":64", "\"blocksize\":32"),
              StatusIs(kDataLoss, HasSubstr("absmax has 16 entries, need 32")));
  EXPECT_THAT(WeightAfter(folder, weights, "\"blocksize\":64", "\"blocksize\":-4"),
              StatusIs(kDataLoss, HasSubstr("blocksize")));
  EXPECT_THAT(WeightAfter(folder, weights, "\"shape\":[32,32]", "\"shape\":[32,64]"),
              StatusIs(kDataLoss, HasSubstr("512 bytes of U8")));
  EXPECT_THAT(WeightAfter(folder, weights, "\"quant_type\":\"nf4\"", "\"quant_type\":\"fp4\""),
              StatusIs(kDataLoss, HasSubstr("another type")));
  EXPECT_THAT(WeightAfter(folder, weights, "{\"blocksize\"", "(\"blocksize\""),
              StatusIs(kDataLoss, HasSubstr("not a JSON object")));
  EXPECT_THAT(WeightAfter(folder, weights, Bytes(-1.0f), Bytes(-2.0f)), StatusIs(kDataLoss, HasSubstr("quant_map")));
}

TEST(StoredModelTest, NamesThatAreNotThereAreNamed) {
  TempFolder folder;
  const auto model = ImportAndOpen(Options(kGgufFile, folder.Path("store")));
  QST_ASSERT_OK(model);
  EXPECT_THAT((*model)->Weight("model.layers.9.mlp.up_proj.weight"),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("layers.9")));
  EXPECT_THAT((*model)->Floats("nothing"), StatusIs(absl::StatusCode::kNotFound));
  EXPECT_THAT((*model)->Dense("model.layers.0.mlp.up_proj.weight"),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("4 bit")));
  EXPECT_THAT((*model)->Weight("model.norm.weight"), StatusIs(absl::StatusCode::kDataLoss, HasSubstr("no matrix")));
  EXPECT_FALSE((*model)->Has("nothing"));
  (*model)->Prefetch(0, 2);
}

}  // namespace
}  // namespace qst
