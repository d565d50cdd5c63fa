// Import and the stored model together: from both source formats, in every quantization.
#include "worker/checkpoint/import_model.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "gtest/gtest.h"
#include "kernels/dtype_convert.h"
#include "kernels/quant/quant4.h"
#include "proto/support/status_matchers.h"
#include "tests/support/shared_data.h"
#include "worker/checkpoint/model_source.h"
#include "worker/checkpoint/safetensors_reader.h"
#include "worker/checkpoint/safetensors_writer.h"
#include "worker/checkpoint/stored_model.h"
#include "worker/checkpoint/test_files.h"

namespace qst {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

constexpr char kGgufFile[] = "worker/checkpoint/testdata/tiny_llama.gguf";
constexpr char kExpectedFile[] = "worker/checkpoint/testdata/tiny_llama.safetensors";

constexpr char kTinyConfig[] = R"({"architectures":["LlamaForCausalLM"],"model_type":"llama","vocab_size":48,
  "hidden_size":32,"intermediate_size":64,"num_hidden_layers":2,"num_attention_heads":4,"num_key_value_heads":2,
  "max_position_embeddings":128,"rms_norm_eps":1e-05,"rope_theta":50000.0,"tie_word_embeddings":false,
  "bos_token_id":1,"eos_token_id":2,"torch_dtype":"float32"})";
constexpr char kTokenizer[] = R"({"version":"1.0","model":{"type":"BPE","vocab":{"a":0},"merges":[]}})";

// The tiny model as a Hugging Face folder.
void MakeFolder(const TempFolder& folder, const std::string& name) {
  fs::create_directory(folder.Path(name));
  fs::copy_file(kExpectedFile, folder.Path(name + "/model.safetensors"));
  folder.Write(name + "/config.json", kTinyConfig);
  folder.Write(name + "/tokenizer.json", kTokenizer);
}

ImportOptions Options(const std::string& source, const std::string& destination) {
  ImportOptions options;
  options.source = source;
  options.destination = destination;
  options.num_threads = 2;
  return options;
}

absl::StatusOr<std::unique_ptr<StoredModel>> ImportAndOpen(const ImportOptions& options) {
  const absl::Status status = ImportModel(options, nullptr);
  if (!status.ok()) return status;
  return StoredModel::Open(options.destination);
}

std::vector<float> ReadAll(const TensorSource& source, const std::string& name) {
  std::vector<float> values(static_cast<std::size_t>(source.Find(name)->num_elems));
  QST_EXPECT_OK(source.ReadFloat(name, 0, source.Find(name)->num_elems, values.data()));
  return values;
}

std::vector<float> Dequantized(const WeightView& weight) {
  std::vector<float> values(static_cast<std::size_t>(weight.rows() * weight.cols()));
  DequantizeRange(weight.quant4, 0, weight.rows() * weight.cols(), values.data());
  return values;
}

// Nothing but the destination is left of an import, or nothing at all.
void ExpectNoRemains(const TempFolder& folder, const std::string& name) {
  EXPECT_FALSE(fs::exists(folder.Path(name)));
  EXPECT_FALSE(fs::exists(folder.Path(name + ".importing")));
}

TEST(ImportModelTest, UnquantizedFolderKeepsEveryBit) {
  TempFolder folder;
  MakeFolder(folder, "hf");
  ImportOptions options = Options(folder.Path("hf"), folder.Path("store"));
  options.quantization.reset();
  const auto model = ImportAndOpen(options);
  QST_ASSERT_OK(model);
  const auto original = SafetensorsReader::Open(kExpectedFile);
  QST_ASSERT_OK(original);
  const auto stored = SafetensorsReader::Open(folder.Path("store/model.safetensors"));
  QST_ASSERT_OK(stored);
  EXPECT_EQ((*stored)->names().size(), (*original)->names().size());
  for (const std::string& name : (*original)->names()) {
    const auto expected = (*original)->Raw(name);
    const auto actual = (*stored)->Raw(name);
    ASSERT_EQ(actual.num_bytes, expected.num_bytes) << name;
    EXPECT_EQ(std::memcmp(actual.data, expected.data, expected.num_bytes), 0) << name;
  }
  QST_EXPECT_OK((*model)->Verify());
  EXPECT_EQ(ReadFile(folder.Path("store/tokenizer.json")), kTokenizer);
  EXPECT_FALSE(fs::exists(folder.Path("store.importing")));
}

TEST(ImportModelTest, QuantizedWeightsAreThoseOfTheQuantizer) {
  TempFolder folder;
  MakeFolder(folder, "hf");
  const auto original = SafetensorsReader::Open(kExpectedFile);
  QST_ASSERT_OK(original);
  int number = 0;
  for (const Quant4Type type : {Quant4Type::kNF4, Quant4Type::kFP4}) {
    for (const bool double_quant : {true, false}) {
      for (const std::int64_t block_size : {64, 128}) {
        ImportOptions options = Options(folder.Path("hf"), folder.Path(absl::StrCat("store", ++number)));
        options.quantization = StoreQuantization{type, block_size, double_quant};
        const auto model = ImportAndOpen(options);
        QST_ASSERT_OK(model);
        for (const ModelTensor& tensor : ModelTensors((*model)->config())) {
          const std::vector<float> values = ReadAll(**original, tensor.name);
          if (tensor.kind != ModelTensor::Kind::kLinear) {
            const auto floats = (*model)->Floats(tensor.name);
            QST_ASSERT_OK(floats);
            EXPECT_EQ(*floats, values) << tensor.name;
            continue;
          }
          const auto weight = (*model)->Weight(tensor.name);
          QST_ASSERT_OK(weight);
          ASSERT_TRUE(weight->is_quantized);
          EXPECT_EQ(weight->quant4.type, type);
          EXPECT_EQ(weight->rows(), tensor.shape[0]);
          EXPECT_EQ(weight->cols(), tensor.shape[1]);
          Quant4Options quant4;
          quant4.type = type;
          quant4.block_size = static_cast<int>(block_size);
          quant4.double_quant = double_quant;
          const auto expected = Quantize4Bit(values.data(), tensor.shape[0], tensor.shape[1], quant4);
          QST_ASSERT_OK(expected);
          EXPECT_EQ(Dequantized(*weight), Dequantized(WeightView::Quantized(expected->view()))) << tensor.name;
        }
      }
    }
  }
}

TEST(ImportModelTest, GgufIsStoredInHalfPrecisionWithoutQuantization) {
  TempFolder folder;
  ImportOptions options = Options(kGgufFile, folder.Path("store"));
  options.quantization.reset();
  const auto model = ImportAndOpen(options);
  QST_ASSERT_OK(model);
  EXPECT_EQ((*model)->config().torch_dtype, "float16");
  const auto original = SafetensorsReader::Open(kExpectedFile);
  QST_ASSERT_OK(original);
  for (const ModelTensor& tensor : ModelTensors((*model)->config())) {
    const auto actual = (*model)->Floats(tensor.name);
    QST_ASSERT_OK(actual);
    std::vector<float> expected = ReadAll(**original, tensor.name);
    const bool was_plain = tensor.kind == ModelTensor::Kind::kNorm ||
                           tensor.name == "model.layers.0.mlp.down_proj.weight" ||  // BF16
                           tensor.name == "model.layers.1.self_attn.q_proj.weight";
    if (!was_plain) {
      for (float& value : expected) value = F16ToF32(F32ToF16(value));
    }
    EXPECT_EQ(*actual, expected) << tensor.name;
  }
  EXPECT_TRUE(fs::exists(folder.Path("store/tokenizer.json")));
  EXPECT_TRUE(fs::exists(folder.Path("store/tokenizer_config.json")));
}

TEST(ImportModelTest, ResultDependsNeitherOnThreadsNorOnTheRun) {
  TempFolder folder;
  std::string first;
  for (const int num_threads : {1, 2, 7}) {
    ImportOptions options = Options(kGgufFile, folder.Path(absl::StrCat("store", num_threads)));
    options.num_threads = num_threads;
    QST_ASSERT_OK(ImportModel(options, nullptr));
    const std::string weights = ReadFile(options.destination + "/model.safetensors");
    if (first.empty()) first = weights;
    EXPECT_TRUE(weights == first) << num_threads;
  }
}

TEST(ImportModelTest, ProgressGrowsToTheTotal) {
  TempFolder folder;
  std::int64_t last = -1;
  std::int64_t total = 0;
  QST_ASSERT_OK(ImportModel(Options(kGgufFile, folder.Path("store")),
                            [&](std::int64_t done, std::int64_t all, absl::string_view what) {
                              EXPECT_GE(done, last);
                              EXPECT_FALSE(what.empty());
                              last = done;
                              total = all;
                              return true;
                            }));
  EXPECT_EQ(last, total);
  EXPECT_GT(total, 0);
}

TEST(ImportModelTest, CancellingAtAnyMomentLeavesNothing) {
  TempFolder folder;
  int num_calls = 0;
  QST_ASSERT_OK(
      ImportModel(Options(kGgufFile, folder.Path("whole")), [&](std::int64_t, std::int64_t, absl::string_view) {
        ++num_calls;
        return true;
      }));
  for (int stop_at = 0; stop_at < num_calls; stop_at += 5) {
    int calls = 0;
    EXPECT_THAT(ImportModel(Options(kGgufFile, folder.Path("store")),
                            [&](std::int64_t, std::int64_t, absl::string_view) { return calls++ < stop_at; }),
                StatusIs(absl::StatusCode::kCancelled));
    ExpectNoRemains(folder, "store");
  }
}

TEST(ImportModelTest, AnExistingDestinationIsLeftAlone) {
  TempFolder folder;
  fs::create_directory(folder.Path("store"));
  EXPECT_THAT(ImportModel(Options(kGgufFile, folder.Path("store")), nullptr),
              StatusIs(absl::StatusCode::kAlreadyExists));
  EXPECT_TRUE(fs::is_empty(folder.Path("store")));
}

TEST(ImportModelTest, RemainsOfAKilledImportAreReplaced) {
  TempFolder folder;
  fs::create_directory(folder.Path("store.importing"));
  folder.Write("store.importing/model.safetensors.tmp", "half a file");
  QST_ASSERT_OK(ImportModel(Options(kGgufFile, folder.Path("store")), nullptr));
  EXPECT_FALSE(fs::exists(folder.Path("store/model.safetensors.tmp")));
}

TEST(ImportModelTest, ASecondImportIntoTheSameNameIsRefusedWhileOneRuns) {
  TempFolder folder;
  absl::Status second = absl::OkStatus();
  QST_ASSERT_OK(
      ImportModel(Options(kGgufFile, folder.Path("store")), [&](std::int64_t, std::int64_t, absl::string_view) {
        if (second.ok()) second = ImportModel(Options(kGgufFile, folder.Path("store")), nullptr);
        return true;
      }));
  EXPECT_THAT(second, StatusIs(absl::StatusCode::kAlreadyExists, HasSubstr("another import")));
}

TEST(ImportModelTest, BadOptionsAreNamed) {
  TempFolder folder;
  const auto kInvalid = absl::StatusCode::kInvalidArgument;
  ImportOptions options = Options(kGgufFile, folder.Path("store"));
  options.quantization->block_size = 48;
  EXPECT_THAT(ImportModel(options, nullptr), StatusIs(kInvalid, HasSubstr("block_size is 48")));
  options = Options(kGgufFile, folder.Path("store"));
  options.num_threads = 0;
  EXPECT_THAT(ImportModel(options, nullptr), StatusIs(kInvalid, HasSubstr("num_threads is 0")));
  EXPECT_THAT(ImportModel(Options(kGgufFile, ""), nullptr), StatusIs(kInvalid));
  EXPECT_THAT(ImportModel(Options(kGgufFile, folder.Path("none/store")), nullptr),
              StatusIs(absl::StatusCode::kNotFound));
  EXPECT_THAT(ImportModel(Options(folder.Path("nothing"), folder.Path("store")), nullptr),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("nothing")));
  ExpectNoRemains(folder, "store");
}

TEST(ImportModelTest, SourcesThatAreNoModelAreNamed) {
  TempFolder folder;
  const auto import = [&](const std::string& source) {
    return ImportModel(Options(source, folder.Path("store")), nullptr);
  };
  fs::create_directory(folder.Path("empty"));
  EXPECT_THAT(import(folder.Path("empty")), StatusIs(absl::StatusCode::kNotFound, HasSubstr("no config.json")));
  EXPECT_THAT(import(folder.Write("notes.txt", "hello")),
              StatusIs(absl::StatusCode::kUnimplemented, HasSubstr("notes.txt")));
  EXPECT_THAT(import(folder.Write("cut.gguf", "GGUF\3")), StatusIs(absl::StatusCode::kDataLoss, HasSubstr("cut.gguf")));

  MakeFolder(folder, "no_weights");
  fs::remove(folder.Path("no_weights/model.safetensors"));
  EXPECT_THAT(import(folder.Path("no_weights")), StatusIs(absl::StatusCode::kNotFound, HasSubstr("model.safetensors")));
  folder.Write("no_weights/pytorch_model.bin", "");
  EXPECT_THAT(import(folder.Path("no_weights")),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("pytorch_model.bin: cut short")));

  MakeFolder(folder, "no_tokenizer");
  fs::remove(folder.Path("no_tokenizer/tokenizer.json"));
  EXPECT_THAT(import(folder.Path("no_tokenizer")), StatusIs(absl::StatusCode::kNotFound, HasSubstr("tokenizer.json")));

  MakeFolder(folder, "deeper");
  folder.Write("deeper/config.json",
               std::string(kTinyConfig)
                   .replace(std::string(kTinyConfig).find("\"num_hidden_layers\":2"), 21, "\"num_hidden_layers\":3"));
  EXPECT_THAT(import(folder.Path("deeper")), StatusIs(absl::StatusCode::kInvalidArgument,
                                                      HasSubstr("'model.layers.2.input_layernorm.weight' is missing")));

  MakeFolder(folder, "wider");
  folder.Write(
      "wider/config.json",
      std::string(kTinyConfig).replace(std::string(kTinyConfig).find("\"vocab_size\":48"), 15, "\"vocab_size\":49"));
  EXPECT_THAT(import(folder.Path("wider")),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("[48, 32], the config asks for [49, 32]")));
  ExpectNoRemains(folder, "store");
}

TEST(ImportModelTest, AWeightThatIsNotFiniteIsNamed) {
  TempFolder folder;
  for (const char* name : {"model.layers.1.mlp.up_proj.weight", "model.norm.weight"}) {
    fs::remove_all(folder.Path("hf"));
    MakeFolder(folder, "hf");
    const auto reader = SafetensorsReader::Open(kExpectedFile);
    QST_ASSERT_OK(reader);
    std::fstream file(folder.Path("hf/model.safetensors"), std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(static_cast<std::streamoff>((*reader)->Raw(name).file_offset + 4 * 3));
    const float nan = NAN;
    file.write(reinterpret_cast<const char*>(&nan), sizeof(nan));
    file.close();
    EXPECT_THAT(ImportModel(Options(folder.Path("hf"), folder.Path("store")), nullptr),
                StatusIs(absl::StatusCode::kInvalidArgument, testing::AllOf(HasSubstr(name), HasSubstr("nan"))));
    ExpectNoRemains(folder, "store");
  }
}

// The tiny model as a Hugging Face folder whose weights are float64.
void MakeDoubleFolder(const TempFolder& folder, const std::string& name, double extra) {
  MakeFolder(folder, name);
  const auto reader = SafetensorsReader::Open(kExpectedFile);
  QST_ASSERT_OK(reader);
  std::string data, header;
  for (const std::string& tensor : (*reader)->names()) {
    const std::size_t begin = data.size();
    for (const float value : ReadAll(**reader, tensor)) data += Bytes(static_cast<double>(value));
    absl::StrAppend(&header, header.empty() ? "{" : ",", "\"", tensor, "\":{\"dtype\":\"F64\",\"shape\":[",
                    absl::StrJoin((*reader)->Find(tensor)->shape, ","), "],\"data_offsets\":[", begin, ",", data.size(),
                    "]}");
  }
  // The last element of the last tensor.
  if (extra != 0) data.replace(data.size() - 8, 8, Bytes(extra));
  folder.Write(name + "/model.safetensors", SafetensorsFile(header + "}", data));
}

TEST(ImportModelTest, DoublesAreNarrowedIfTheyFit) {
  TempFolder folder;
  MakeFolder(folder, "single");
  MakeDoubleFolder(folder, "double", 0);
  for (const bool is_quantized : {true, false}) {
    ImportOptions single = Options(folder.Path("single"), folder.Path(is_quantized ? "a" : "c"));
    ImportOptions twice = Options(folder.Path("double"), folder.Path(is_quantized ? "b" : "d"));
    if (!is_quantized) single.quantization.reset();
    if (!is_quantized) twice.quantization.reset();
    QST_ASSERT_OK(ImportModel(single, nullptr));
    QST_ASSERT_OK(ImportModel(twice, nullptr));
    EXPECT_TRUE(ReadFile(single.destination + "/model.safetensors") ==
                ReadFile(twice.destination + "/model.safetensors"));
  }
  MakeDoubleFolder(folder, "large", -1e39);
  for (const bool is_quantized : {true, false}) {
    ImportOptions options = Options(folder.Path("large"), folder.Path("e"));
    if (!is_quantized) options.quantization.reset();
    EXPECT_THAT(ImportModel(options, nullptr),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("is -1e+39, too large for float32")));
  }
  ExpectNoRemains(folder, "e");
}

TEST(ImportModelTest, ShardsGiveTheSameModelAsOneFile) {
  TempFolder folder;
  MakeFolder(folder, "one");
  MakeFolder(folder, "sharded");
  fs::remove(folder.Path("sharded/model.safetensors"));
  const auto reader = SafetensorsReader::Open(kExpectedFile);
  QST_ASSERT_OK(reader);
  std::vector<SafetensorsEntry> shards[2];
  std::string map;
  for (std::size_t i = 0; i < (*reader)->names().size(); ++i) {
    const std::string& name = (*reader)->names()[i];
    const TensorInfo& info = *(*reader)->Find(name);
    shards[i % 2].push_back({name, *info.dtype, info.shape, (*reader)->Raw(name).data});
    absl::StrAppend(&map, map.empty() ? "" : ",", "\"", name, "\":\"part-", i % 2, ".safetensors\"");
  }
  QST_ASSERT_OK(WriteSafetensors(folder.Path("sharded/part-0.safetensors"), shards[0], {}));
  QST_ASSERT_OK(WriteSafetensors(folder.Path("sharded/part-1.safetensors"), shards[1], {}));
  folder.Write("sharded/model.safetensors.index.json", "{\"weight_map\":{" + map + "}}");
  QST_ASSERT_OK(ImportModel(Options(folder.Path("one"), folder.Path("a")), nullptr));
  QST_ASSERT_OK(ImportModel(Options(folder.Path("sharded"), folder.Path("b")), nullptr));
  EXPECT_TRUE(ReadFile(folder.Path("a/model.safetensors")) == ReadFile(folder.Path("b/model.safetensors")));

  const auto import_with_index = [&](const std::string& index) {
    folder.Write("sharded/model.safetensors.index.json", index);
    return ImportModel(Options(folder.Path("sharded"), folder.Path("c")), nullptr);
  };
  const auto kInvalid = absl::StatusCode::kInvalidArgument;
  EXPECT_THAT(import_with_index("{}"), StatusIs(kInvalid, HasSubstr("weight_map")));
  EXPECT_THAT(import_with_index(R"({"weight_map":{"a":1}})"), StatusIs(kInvalid, HasSubstr("'a'")));
  EXPECT_THAT(import_with_index(R"({"weight_map":{"a":"../one/model.safetensors"}})"),
              StatusIs(kInvalid, HasSubstr("no file of this folder")));
  EXPECT_THAT(import_with_index(R"({"weight_map":{"a":"part-0.safetensors"}})"),
              StatusIs(kInvalid, HasSubstr("'a' is not in part-0")));
  EXPECT_THAT(import_with_index(R"({"weight_map":{"a":"part-9.safetensors"}})"),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("part-9")));
}

TEST(ImportModelTest, ARealModelKeepsItsBitsUnquantizedAndItsShapeIn4Bit) {
  const auto source = SharedDataPath("models/stories260K-hf");
  if (!source.has_value()) GTEST_SKIP() << "no models/stories260K-hf in the shared data folder";
  TempFolder folder;
  ImportOptions options = Options(*source, folder.Path("plain"));
  options.quantization.reset();
  const auto plain = ImportAndOpen(options);
  QST_ASSERT_OK(plain);
  const auto original = SafetensorsReader::Open(*source + "/model.safetensors");
  QST_ASSERT_OK(original);
  for (const ModelTensor& tensor : ModelTensors((*plain)->config())) {
    const auto floats = (*plain)->Floats(tensor.name);
    QST_ASSERT_OK(floats);
    const std::vector<float> expected = ReadAll(**original, tensor.name);
    ASSERT_EQ(floats->size(), expected.size());
    EXPECT_EQ(std::memcmp(floats->data(), expected.data(), expected.size() * sizeof(float)), 0) << tensor.name;
  }
  EXPECT_EQ((*plain)->config().NumParameters(), 260'032);
  const auto embedding = (*plain)->Embedding();
  const auto head = (*plain)->Head();
  QST_ASSERT_OK(embedding);
  QST_ASSERT_OK(head);
  EXPECT_EQ(head->data, embedding->data);  // tied

  const auto quantized = ImportAndOpen(Options(*source, folder.Path("nf4")));
  QST_ASSERT_OK(quantized);
  for (const ModelTensor& tensor : ModelTensors((*quantized)->config())) {
    if (tensor.kind != ModelTensor::Kind::kLinear) continue;
    const auto weight = (*quantized)->Weight(tensor.name);
    QST_ASSERT_OK(weight);
    const std::vector<float> expected = ReadAll(**original, tensor.name);
    const std::vector<float> actual = Dequantized(*weight);
    double error = 0, norm = 0;
    for (std::size_t i = 0; i < expected.size(); ++i) {
      error += (actual[i] - expected[i]) * static_cast<double>(actual[i] - expected[i]);
      norm += expected[i] * static_cast<double>(expected[i]);
    }
    // Half of NF4's widest gap (from 0.7230 to 1 of a block's largest magnitude) bounds every element; over a
    // tensor of about normal weights the relative root mean square error is about 0.09.
    EXPECT_LT(std::sqrt(error / norm), 0.12) << tensor.name;
    for (std::size_t block = 0; block < expected.size(); block += 64) {
      const std::size_t end = std::min(expected.size(), block + 64);
      float largest = 0;
      for (std::size_t i = block; i < end; ++i) largest = std::max(largest, std::fabs(expected[i]));
      for (std::size_t i = block; i < end; ++i) {
        // The lower side's widest gap is from -1 to -0.6962; double quantization shifts a block's scale a little.
        ASSERT_LE(std::fabs(actual[i] - expected[i]), (0.152f + 0.1f) * largest) << tensor.name << " " << i;
      }
    }
  }
}

}  // namespace
}  // namespace qst
