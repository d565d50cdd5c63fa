// Models whose weights are in 4 bit already are stored as they are: what bitsandbytes wrote, what an export wrote, and
// damaged ones.
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "proto/support/status_matchers.h"
#include "worker/checkpoint/export_model.h"
#include "worker/checkpoint/import_model.h"
#include "worker/checkpoint/model_source.h"
#include "worker/checkpoint/safetensors_reader.h"
#include "worker/checkpoint/safetensors_writer.h"
#include "worker/checkpoint/stored_model.h"
#include "worker/checkpoint/test_files.h"

namespace qst {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr char kGgufFile[] = "worker/checkpoint/testdata/tiny_llama.gguf";
constexpr char kWeight[] = "model.layers.1.mlp.up_proj.weight";

absl::Status Import(const std::string& source, const std::string& destination,
                    const std::optional<StoreQuantization>& quantization = StoreQuantization{},
                    const RequiredQuantization& required = {}) {
  ImportOptions options;
  options.source = source;
  options.destination = destination;
  options.quantization = quantization;
  options.required = required;
  options.num_threads = 2;
  return ImportModel(options, nullptr);
}

absl::Status Export(const std::string& model, const std::string& destination, bool dequantize = false) {
  ExportOptions options;
  options.model = model;
  options.destination = destination;
  options.dequantize = dequantize;
  return ExportModel(options, nullptr);
}

// A file's tensors, to be changed and written again.
struct Tensors {
  struct Tensor {
    DType dtype;
    std::vector<std::int64_t> shape;
    std::string bytes;
  };
  std::map<std::string, Tensor> tensors;

  static Tensors Read(const std::string& path) {
    Tensors result;
    const auto reader = SafetensorsReader::Open(path);
    EXPECT_TRUE(reader.ok()) << reader.status();
    for (const std::string& name : (*reader)->names()) {
      const auto raw = (*reader)->Raw(name);
      result.tensors[name] = {*(*reader)->Find(name)->dtype, (*reader)->Find(name)->shape,
                              std::string(reinterpret_cast<const char*>(raw.data), raw.num_bytes)};
    }
    return result;
  }
  void Write(const std::string& path, const std::function<bool(const std::string&)>& wanted = nullptr) const {
    std::vector<SafetensorsEntry> entries;
    for (const auto& [name, tensor] : tensors) {
      if (wanted == nullptr || wanted(name)) entries.push_back({name, tensor.dtype, tensor.shape, tensor.bytes.data()});
    }
    QST_ASSERT_OK(WriteSafetensors(path, entries, {{"format", "pt"}}));
  }
};

// "nf4": the tiny model in the layout of bitsandbytes.
void MakeQuantized(const TempFolder& folder, const StoreQuantization& quantization = {}) {
  QST_ASSERT_OK(Import(kGgufFile, folder.Path("store"), quantization));
  QST_ASSERT_OK(Export(folder.Path("store"), folder.Path("nf4")));
}

TEST(BitsandbytesTest, OutOfTheStoreAndBackInIsTheSameFile) {
  for (const Quant4Type type : {Quant4Type::kNF4, Quant4Type::kFP4}) {
    for (const bool double_quant : {true, false}) {
      for (const std::int64_t block_size : {64, 512}) {
        TempFolder folder;
        MakeQuantized(folder, {type, block_size, double_quant});
        // Nothing is asked for: it comes in as it is.
        QST_ASSERT_OK(Import(folder.Path("nf4"), folder.Path("again")));
        EXPECT_TRUE(ReadFile(folder.Path("again/model.safetensors")) ==
                    ReadFile(folder.Path("store/model.safetensors")));
        EXPECT_EQ(ReadFile(folder.Path("again/config.json")), ReadFile(folder.Path("store/config.json")));
        const auto model = StoredModel::Open(folder.Path("again"));
        QST_ASSERT_OK(model);
        const StoreManifest& manifest = (*model)->manifest();
        EXPECT_EQ(manifest.quantization->type, type);
        EXPECT_EQ(manifest.quantization->block_size, block_size);
        EXPECT_EQ(manifest.quantization->double_quant, double_quant);
        EXPECT_EQ(manifest.quantization_error, 0);  // not known: the originals are not there
      }
    }
  }
}

TEST(BitsandbytesTest, WhatIsAskedForMustBeWhatIsThere) {
  TempFolder folder;
  MakeQuantized(folder, {Quant4Type::kFP4, 128, true});
  const std::string source = folder.Path("nf4");
  const auto refused = [&](absl::string_view what) {
    return StatusIs(absl::StatusCode::kInvalidArgument,
                    AllOf(HasSubstr("quantized already (fp4, blocks of 128, double quantization)"), HasSubstr(what)));
  };
  const std::string out = folder.Path("out");
  EXPECT_THAT(Import(source, out, std::nullopt), refused("asked for is none"));
  EXPECT_THAT(Import(source, out, StoreQuantization{Quant4Type::kNF4, 128, true}, {true, false, false}),
              refused("asked for is nf4"));
  EXPECT_THAT(Import(source, out, StoreQuantization{Quant4Type::kFP4, 64, true}, {false, true, false}),
              refused("blocks of 64"));
  EXPECT_THAT(Import(source, out, StoreQuantization{Quant4Type::kFP4, 128, false}, {false, false, true}),
              refused("single"));
  EXPECT_FALSE(fs::exists(out));
  QST_EXPECT_OK(Import(source, out, StoreQuantization{Quant4Type::kFP4, 128, true}, {true, true, true}));
}

TEST(BitsandbytesTest, ShardsAndOtherStorageTypesMakeNoDifference) {
  TempFolder folder;
  MakeQuantized(folder);
  Tensors tensors = Tensors::Read(folder.Path("nf4/model.safetensors"));
  // Codes as bf16 "numbers", as bnb_4bit_quant_storage: bfloat16 writes them.
  Tensors::Tensor& packed = tensors.tensors[kWeight];
  packed.dtype = DType::kBF16;
  packed.shape = {static_cast<std::int64_t>(packed.bytes.size() / 2), 1};
  fs::remove(folder.Path("nf4/model.safetensors"));
  nlohmann::json index;
  // Even the parts of one weight in different files.
  const auto is_first = [](const std::string& name) { return std::hash<std::string>{}(name) % 2 == 0; };
  for (const auto& [name, tensor] : tensors.tensors) {
    index["weight_map"][name] = is_first(name) ? "a.safetensors" : "b.safetensors";
  }
  tensors.Write(folder.Path("nf4/a.safetensors"), is_first);
  tensors.Write(folder.Path("nf4/b.safetensors"), [&](const std::string& name) { return !is_first(name); });
  folder.Write("nf4/model.safetensors.index.json", index.dump());
  QST_ASSERT_OK(Import(folder.Path("nf4"), folder.Path("again")));
  EXPECT_TRUE(ReadFile(folder.Path("again/model.safetensors")) == ReadFile(folder.Path("store/model.safetensors")));
}

TEST(BitsandbytesTest, ATableOfAnotherPyTorchIsUsedAsItIs) {
  TempFolder folder;
  MakeQuantized(folder);
  Tensors tensors = Tensors::Read(folder.Path("nf4/model.safetensors"));
  // The last bit of every entry but 0.
  for (auto& [name, tensor] : tensors.tensors) {
    if (!absl::EndsWith(name, ".nested_quant_map")) continue;
    for (int i = 0; i < 256; ++i) {
      if (i != 127) tensor.bytes[static_cast<std::size_t>(4 * i)] ^= 1;
    }
  }
  tensors.Write(folder.Path("nf4/model.safetensors"));
  QST_ASSERT_OK(Import(folder.Path("nf4"), folder.Path("again")));
  const auto original = StoredModel::Open(folder.Path("store"));
  const auto model = StoredModel::Open(folder.Path("again"));
  QST_ASSERT_OK(original);
  QST_ASSERT_OK(model);
  const auto weight = (*model)->Weight(kWeight);
  QST_ASSERT_OK(weight);
  const std::string& map = tensors.tensors[absl::StrCat(kWeight, ".nested_quant_map")].bytes;
  EXPECT_EQ(std::memcmp(weight->quant4.nested_map, map.data(), map.size()), 0);
  EXPECT_NE(std::memcmp((*original)->Weight(kWeight)->quant4.nested_map, map.data(), map.size()), 0);
}

TEST(BitsandbytesTest, ModulesThatWereLeftOutStayAsTheyAre) {
  TempFolder folder;
  MakeQuantized(folder);
  QST_ASSERT_OK(Export(folder.Path("store"), folder.Path("plain"), /*dequantize=*/true));
  const Tensors plain = Tensors::Read(folder.Path("plain/model.safetensors"));
  Tensors mixed = Tensors::Read(folder.Path("nf4/model.safetensors"));
  for (auto it = mixed.tensors.begin(); it != mixed.tensors.end();) {
    it = absl::StartsWith(it->first, kWeight) ? mixed.tensors.erase(it) : std::next(it);
  }
  mixed.tensors[kWeight] = plain.tensors.at(kWeight);
  mixed.Write(folder.Path("nf4/model.safetensors"));
  QST_ASSERT_OK(Import(folder.Path("nf4"), folder.Path("mixed")));
  const auto model = StoredModel::Open(folder.Path("mixed"));
  QST_ASSERT_OK(model);
  const auto weight = (*model)->Weight(kWeight);
  QST_ASSERT_OK(weight);
  EXPECT_FALSE(weight->is_quantized);
  EXPECT_EQ(
      std::memcmp(weight->dense.data, plain.tensors.at(kWeight).bytes.data(), plain.tensors.at(kWeight).bytes.size()),
      0);
  EXPECT_TRUE((*model)->Weight("model.layers.0.mlp.up_proj.weight")->is_quantized);
  const auto config = nlohmann::json::parse(ReadFile(folder.Path("mixed/config.json")));
  EXPECT_THAT(config["quantization_config"]["llm_int8_skip_modules"].get<std::vector<std::string>>(),
              ElementsAre("lm_head", "model.layers.1.mlp.up_proj"));
  // And again the same, out and in.
  QST_ASSERT_OK(Export(folder.Path("mixed"), folder.Path("out")));
  QST_ASSERT_OK(Import(folder.Path("out"), folder.Path("again")));
  EXPECT_TRUE(ReadFile(folder.Path("again/model.safetensors")) == ReadFile(folder.Path("mixed/model.safetensors")));
}

// Changes the good model and imports it; the error must name the weight or its part.
absl::Status ImportChanged(const std::function<void(std::map<std::string, Tensors::Tensor>&)>& change,
                           const StoreQuantization& quantization = {}) {
  TempFolder folder;
  MakeQuantized(folder, quantization);
  Tensors tensors = Tensors::Read(folder.Path("nf4/model.safetensors"));
  change(tensors.tensors);
  tensors.Write(folder.Path("nf4/model.safetensors"));
  const absl::Status status = Import(folder.Path("nf4"), folder.Path("out"));
  EXPECT_FALSE(fs::exists(folder.Path("out")));
  EXPECT_EQ(status.message().find('\n'), absl::string_view::npos);
  return status;
}

TEST(BitsandbytesTest, DamagedOrForeignPartsAreNamed) {
  using Map = std::map<std::string, Tensors::Tensor>;
  const auto kInvalid = absl::StatusCode::kInvalidArgument;
  const std::string weight = kWeight;
  const std::string state = weight + ".quant_state.bitsandbytes__nf4";
  EXPECT_THAT(ImportChanged([&](Map& m) { m[weight + ".quant_map"].bytes.replace(12, 4, Bytes(-0.4f)); }),
              StatusIs(kInvalid, HasSubstr(weight + ".quant_map' is not the standard table of nf4")));
  EXPECT_THAT(ImportChanged([&](Map& m) { m[weight + ".nested_quant_map"].bytes.replace(0, 4, Bytes(-0.9f)); }),
              StatusIs(kInvalid, HasSubstr(weight + ".nested_quant_map' is not the standard")));
  EXPECT_THAT(ImportChanged([&](Map& m) { m[weight + ".nested_absmax"].bytes.replace(0, 4, Bytes(INFINITY)); }),
              StatusIs(kInvalid, HasSubstr(weight + ".nested_absmax': element 0 is inf")));
  EXPECT_THAT(ImportChanged([&](Map& m) { m[weight + ".absmax"].bytes.replace(4, 4, Bytes(NAN)); },
                            {Quant4Type::kNF4, 64, false}),
              StatusIs(kInvalid, HasSubstr(weight + ".absmax': element 1 is nan")));
  for (const char* part : {".quant_map", ".nested_quant_map", ".nested_absmax", ".absmax", ""}) {
    EXPECT_THAT(ImportChanged([&](Map& m) { m.erase(weight + part); }), StatusIs(kInvalid, HasSubstr(weight))) << part;
    EXPECT_THAT(ImportChanged([&](Map& m) {
                  Tensors::Tensor& tensor = m[weight + part];
                  tensor.bytes.resize(tensor.bytes.size() / 2);
                  tensor.shape = {static_cast<std::int64_t>(tensor.bytes.size()) / DTypeBytes(tensor.dtype)};
                }),
                StatusIs(kInvalid, HasSubstr(weight)))
        << part;
  }
  const auto with_state = [&](const std::string& text) {
    return ImportChanged([&](Map& m) { m[state] = {DType::kU8, {static_cast<std::int64_t>(text.size())}, text}; });
  };
  EXPECT_THAT(with_state("{"), StatusIs(absl::StatusCode::kDataLoss, HasSubstr(weight)));
  EXPECT_THAT(with_state(R"({"quant_type":"fp4","blocksize":64,"shape":[64,32]})"),
              StatusIs(kInvalid, HasSubstr("another type")));
  EXPECT_THAT(with_state(R"({"quant_type":"nf4","blocksize":32,"shape":[64,32]})"),
              StatusIs(absl::StatusCode::kUnimplemented, HasSubstr("blocks of 32")));
  EXPECT_THAT(with_state(R"({"quant_type":"nf4","blocksize":64,"shape":[2147483648,2147483648]})"),
              StatusIs(kInvalid, HasSubstr("has not the 2305843009213693952 bytes")));
  EXPECT_THAT(
      with_state(R"({"quant_type":"nf4","blocksize":64,"shape":[32,64],"nested_blocksize":256,"nested_offset":0})"),
      StatusIs(kInvalid, HasSubstr("the config asks for [64, 32]")));
  EXPECT_THAT(with_state(std::string(1 << 17, ' ')), StatusIs(kInvalid, HasSubstr("quant_state is no text")));
}

TEST(BitsandbytesTest, WhatTheStoreCannotHoldIsRefused) {
  using Map = std::map<std::string, Tensors::Tensor>;
  const std::string suffixes[] = {
      "", ".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", ".quant_state.bitsandbytes__nf4"};
  // The head in 4 bit. [48, 32] fits no layer's weight, so its state is written by hand.
  EXPECT_THAT(ImportChanged([&](Map& m) {
                for (const std::string& suffix : suffixes) m["lm_head.weight" + suffix] = m[kWeight + suffix];
                m["lm_head.weight"].bytes.resize(768);
                m["lm_head.weight"].shape = {768, 1};
                m["lm_head.weight.absmax"].bytes.resize(24);
                m["lm_head.weight.absmax"].shape = {24};
                std::string& text = m["lm_head.weight.quant_state.bitsandbytes__nf4"].bytes;
                const std::size_t shape = text.find("[64,32]");
                ASSERT_NE(shape, std::string::npos);
                text.replace(shape, 7, "[48,32]");
              }),
              StatusIs(absl::StatusCode::kUnimplemented, HasSubstr("'lm_head.weight' is in 4 bit")));
  EXPECT_THAT(ImportChanged([](Map& m) {
                m["model.layers.0.mlp.up_proj.SCB"] = {DType::kF32, {1}, Bytes(1.f)};
              }),
              StatusIs(absl::StatusCode::kUnimplemented, HasSubstr("8 bit")));
  // Two kinds in one model.
  TempFolder other;
  MakeQuantized(other, {Quant4Type::kFP4, 64, true});
  const Tensors fp4 = Tensors::Read(other.Path("nf4/model.safetensors"));
  EXPECT_THAT(ImportChanged([&](Map& m) {
                for (const std::string& suffix : suffixes) m.erase(kWeight + suffix);
                for (const auto& [name, tensor] : fp4.tensors) {
                  if (absl::StartsWith(name, kWeight)) m[name] = tensor;
                }
              }),
              StatusIs(absl::StatusCode::kInvalidArgument, AllOf(HasSubstr("two kinds"), HasSubstr(kWeight))));
}

TEST(BitsandbytesTest, ReadingWithoutImportingGivesWhatTheCodesMean) {
  TempFolder folder;
  MakeQuantized(folder);
  QST_ASSERT_OK(Export(folder.Path("store"), folder.Path("plain"), /*dequantize=*/true));
  const auto source = OpenModelSource(folder.Path("nf4"));
  const auto plain = OpenModelSource(folder.Path("plain"));
  QST_ASSERT_OK(source);
  QST_ASSERT_OK(plain);
  for (const ModelTensor& tensor : ModelTensors(plain->config)) {
    std::vector<float> actual(static_cast<std::size_t>(tensor.num_elems()));
    std::vector<float> expected(actual.size());
    QST_ASSERT_OK(source->tensors->ReadFloat(tensor.name, 0, tensor.num_elems(), actual.data()));
    QST_ASSERT_OK(plain->tensors->ReadFloat(tensor.name, 0, tensor.num_elems(), expected.data()));
    EXPECT_EQ(actual, expected) << tensor.name;
  }
}

}  // namespace
}  // namespace qst
