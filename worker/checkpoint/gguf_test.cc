// The GGUF container against broken and hostile files, and the LLaMA model inside a good one.
#include <cmath>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "kernels/dtype_convert.h"
#include "proto/support/status_matchers.h"
#include "worker/checkpoint/gguf_file.h"
#include "worker/checkpoint/gguf_model.h"
#include "worker/checkpoint/safetensors_reader.h"
#include "worker/checkpoint/test_files.h"

namespace qst {
namespace {

using testing::HasSubstr;

constexpr char kModelFile[] = "worker/checkpoint/testdata/tiny_llama.gguf";
constexpr char kExpectedFile[] = "worker/checkpoint/testdata/tiny_llama.safetensors";
constexpr std::uint32_t kF32 = 0;

absl::StatusOr<std::unique_ptr<GgufFile>> OpenBytes(const std::string& bytes) {
  return GgufFile::FromMemory(reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size(), "m.gguf");
}

TEST(GgufFileTest, MetadataOfEveryTypeIsRead) {
  const std::string bytes =
      GgufBuilder()
          .Raw("u8", 0, Bytes<std::uint8_t>(200))
          .Raw("i8", 1, Bytes<std::int8_t>(-5))
          .Raw("i16", 3, Bytes<std::int16_t>(-500))
          .Raw("u64", 10, Bytes<std::uint64_t>(1ull << 40))
          .Raw("i64", 11, Bytes<std::int64_t>(-1))
          .Raw("f64", 12, Bytes<double>(0.5))
          .Float("f32", 1.5f)
          .Raw("yes", 7, Bytes<std::uint8_t>(1))
          .Text("text", "hello")
          .Texts("texts", {"a", "", "ccc"})
          .Raw("ints", 9,
               Bytes<std::uint32_t>(5) + Bytes<std::uint64_t>(2) + Bytes<std::int32_t>(-7) + Bytes<std::int32_t>(8))
          .Build("");
  const auto file = OpenBytes(bytes);
  QST_ASSERT_OK(file);
  EXPECT_EQ((*file)->Int("u8").value(), 200);
  EXPECT_EQ((*file)->Int("i8").value(), -5);
  EXPECT_EQ((*file)->Int("i16").value(), -500);
  EXPECT_EQ((*file)->Int("u64").value(), std::int64_t{1} << 40);
  EXPECT_EQ((*file)->Int("i64").value(), -1);
  EXPECT_EQ((*file)->Float("f64").value(), 0.5);
  EXPECT_EQ((*file)->Float("f32").value(), 1.5);
  EXPECT_EQ((*file)->Float("u8").value(), 200.0);
  EXPECT_EQ((*file)->Bool("yes").value(), true);
  EXPECT_EQ((*file)->String("text").value(), "hello");
  EXPECT_EQ((*file)->Strings("texts").value(), (std::vector<std::string>{"a", "", "ccc"}));
  EXPECT_EQ((*file)->Ints("ints").value(), (std::vector<std::int64_t>{-7, 8}));
  EXPECT_EQ((*file)->Floats("ints").value(), (std::vector<double>{-7.0, 8.0}));
  EXPECT_EQ((*file)->Int("absent").value(), std::nullopt);
  EXPECT_THAT((*file)->Int("text"),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("'text' is not an integer")));
  EXPECT_THAT((*file)->String("texts"), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT((*file)->Strings("ints"), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT((*file)->Bool("u8"), StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST(GgufFileTest, BrokenFilesAreRefusedInOneClearLine) {
  const auto kInvalid = absl::StatusCode::kInvalidArgument;
  const auto kCut = absl::StatusCode::kDataLoss;
  const auto kUnimplemented = absl::StatusCode::kUnimplemented;
  const std::string data(256, '\0');
  const std::uint64_t huge = ~0ull;
  const auto tensor = [&](std::vector<std::uint64_t> dims, std::uint32_t type, std::uint64_t offset) {
    return GgufBuilder().Tensor("t", dims, type, offset).Build(data);
  };
  const struct {
    const char* what;
    std::string bytes;
    absl::StatusCode code;
    const char* message;
  } cases[] = {
      {"empty", "", kCut, "cut short"},
      {"cut in the header", GgufBuilder().Build("").substr(0, 20), kCut, "cut short"},
      {"other magic", "GGML" + std::string(40, '\0'), kInvalid, "not a GGUF file"},
      {"version 1", GgufBuilder().Version(1).Build(""), kUnimplemented, "version 1"},
      {"version 4", GgufBuilder().Version(4).Build(""), kUnimplemented, "version 4"},
      {"big endian", GgufBuilder().Version(0x03000000u).Build(""), kUnimplemented, "big-endian"},
      {"huge number of tensors", GgufBuilder().Build("", huge, 0), kCut, "announces 18446744073709551615 tensors"},
      {"huge number of metadata", GgufBuilder().Build("", 0, huge), kCut, "metadata entries"},
      {"more metadata than there is", GgufBuilder().Int("a", 1).Build("", 0, 2), kInvalid, "the key is empty"},
      {"huge key",
       "GGUF" + Bytes<std::uint32_t>(3) + Bytes<std::uint64_t>(0) + Bytes<std::uint64_t>(1) + Bytes(huge) +
           std::string(64, 'x'),
       kCut, "cut short"},
      {"huge string", GgufBuilder().Raw("a", 8, Bytes(huge - 4)).Build(""), kCut, "'a': cut short"},
      {"huge array", GgufBuilder().Raw("a", 9, Bytes<std::uint32_t>(4) + Bytes(huge)).Build(data), kCut,
       "'a': cut short: holds 18446744073709551615"},
      {"huge array of strings", GgufBuilder().Raw("a", 9, Bytes<std::uint32_t>(8) + Bytes(huge)).Build(data), kCut,
       "'a': cut short"},
      {"array whose size overflows",
       GgufBuilder().Raw("a", 9, Bytes<std::uint32_t>(10) + Bytes<std::uint64_t>(1ull << 61)).Build(data), kCut,
       "'a': cut short"},
      {"unknown value type", GgufBuilder().Raw("a", 13, "").Build(data), kInvalid, "'a': type 13 is not known"},
      {"array of arrays", GgufBuilder().Raw("a", 9, Bytes<std::uint32_t>(9) + Bytes<std::uint64_t>(1)).Build(data),
       kInvalid, "arrays of arrays"},
      {"key twice", GgufBuilder().Int("a", 1).Int("a", 2).Build(data), kInvalid, "'a': the key comes twice"},
      {"alignment 0", GgufBuilder().Int("general.alignment", 0).Build(data), kInvalid, "general.alignment is 0"},
      {"alignment 48", GgufBuilder().Int("general.alignment", 48).Build(data), kInvalid, "general.alignment is 48"},
      {"alignment text", GgufBuilder().Text("general.alignment", "x").Build(data), kInvalid, "general.alignment"},
      {"no dimensions", tensor({}, kF32, 0), kInvalid, "'t': 0 dimensions"},
      {"five dimensions", tensor({1, 1, 1, 1, 1}, kF32, 0), kInvalid, "'t': 5 dimensions"},
      {"dimension 0", tensor({0}, kF32, 0), kInvalid, "'t': a dimension is 0"},
      {"huge dimension", tensor({huge}, kF32, 0), kInvalid, "'t': a dimension is 0, or there are too many"},
      {"elements overflow", tensor({1ull << 32, 1ull << 32}, kF32, 0), kInvalid, "too many elements"},
      {"bytes overflow", tensor({1ull << 62}, kF32, 0), kInvalid, "too many elements"},
      {"unsupported type", tensor({256}, 11, 0), kUnimplemented, "'t': Q3_K is not supported"},
      {"unknown type", tensor({256}, 999, 0), kUnimplemented, "'t': type 999 is not supported"},
      {"ragged blocks", tensor({33}, 2, 0), kInvalid, "'t': rows of 33 elements"},
      {"misaligned offset", tensor({4}, kF32, 4), kInvalid, "'t': offset 4"},
      {"past the end", tensor({65}, kF32, 0), kCut, "'t': cut short: takes 260 bytes from 0"},
      {"far past the end", tensor({4}, kF32, huge - 31), kCut, "'t': cut short"},
      {"tensor cut", GgufBuilder().Tensor("t", {4}, kF32, 0).Build("").substr(0, 40), kCut, "cannot hold"},
      {"more tensors than there are", GgufBuilder().Tensor("t", {4}, kF32, 0).Build(data, 4, 0), kInvalid, "tensor 1"},
      {"name twice", GgufBuilder().Tensor("t", {4}, kF32, 0).Tensor("t", {4}, kF32, 32).Build(data), kInvalid,
       "'t': the name comes twice"},
      {"overlap", GgufBuilder().Tensor("t", {9}, kF32, 0).Tensor("u", {4}, kF32, 32).Build(data), kInvalid,
       "'u' overlaps tensor 't'"},
      {"same bytes", GgufBuilder().Tensor("t", {4}, kF32, 0).Tensor("u", {4}, kF32, 0).Build(data), kInvalid,
       "overlaps"},
  };
  for (const auto& c : cases) {
    const absl::Status status = OpenBytes(c.bytes).status();
    EXPECT_THAT(status, StatusIs(c.code, HasSubstr(c.message))) << c.what;
    EXPECT_THAT(std::string(status.message()), HasSubstr("m.gguf")) << c.what;
  }
}

TEST(GgufFileTest, EveryCutOfAGoodFileIsRefused) {
  const std::string good = ReadFile(kModelFile);
  QST_ASSERT_OK(OpenBytes(good));
  for (std::size_t length = 0; length + 32 < good.size(); length += 37) {
    EXPECT_THAT(OpenBytes(good.substr(0, length)), StatusIs(absl::StatusCode::kDataLoss)) << length;
  }
}

TEST(GgufModelTest, ConfigComesFromTheMetadata) {
  auto file = GgufFile::Open(kModelFile);
  QST_ASSERT_OK(file);
  const auto model = GgufModel::Create(*std::move(file));
  QST_ASSERT_OK(model);
  const ModelConfig& config = (*model)->config();
  EXPECT_EQ(config.vocab_size, 48);
  EXPECT_EQ(config.hidden_size, 32);
  EXPECT_EQ(config.intermediate_size, 64);
  EXPECT_EQ(config.num_layers, 2);
  EXPECT_EQ(config.num_heads, 4);
  EXPECT_EQ(config.num_kv_heads, 2);
  EXPECT_EQ(config.head_dim, 8);
  EXPECT_EQ(config.max_position_embeddings, 128);
  EXPECT_EQ(config.norm_eps, 1e-5);  // the decimal that was meant, not its float32 neighbour
  EXPECT_EQ(config.rope_theta, 50000.0);
  EXPECT_FALSE(config.tie_word_embeddings);
  EXPECT_EQ(config.bos_token_id, 1);
  EXPECT_EQ(config.eos_token_ids, std::vector<std::int64_t>{2});
}

TEST(GgufModelTest, TensorsHaveHuggingFaceNamesAndLayout) {
  auto file = GgufFile::Open(kModelFile);
  QST_ASSERT_OK(file);
  const auto model = GgufModel::Create(*std::move(file));
  QST_ASSERT_OK(model);
  const auto expected = SafetensorsReader::Open(kExpectedFile);
  QST_ASSERT_OK(expected);
  EXPECT_EQ((*model)->names().size(), (*expected)->names().size());
  for (const std::string& name : (*expected)->names()) {
    const TensorInfo* wanted = (*expected)->Find(name);
    const TensorInfo* info = (*model)->Find(name);
    ASSERT_NE(info, nullptr) << name;
    EXPECT_EQ(info->shape, wanted->shape) << name;
    std::vector<float> reference(static_cast<std::size_t>(wanted->num_elems));
    QST_ASSERT_OK((*expected)->ReadFloat(name, 0, wanted->num_elems, reference.data()));
    // Whole, and in pieces that start and end inside blocks and rows.
    for (const std::int64_t piece : {wanted->num_elems, std::int64_t{1}, std::int64_t{7}, std::int64_t{45}}) {
      std::vector<float> actual(reference.size(), NAN);
      for (std::int64_t first = 0; first < wanted->num_elems; first += piece) {
        const std::int64_t count = std::min(piece, wanted->num_elems - first);
        QST_ASSERT_OK((*model)->ReadFloat(name, first, count, actual.data() + first));
      }
      ASSERT_EQ(actual, reference) << name << " in pieces of " << piece;
    }
    (*model)->Release(name);
  }
  float out;
  EXPECT_THAT((*model)->ReadFloat("model.norm.weight", 32, 1, &out), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT((*model)->ReadFloat("output_norm.weight", 0, 1, &out), StatusIs(absl::StatusCode::kNotFound));
}

TEST(GgufModelTest, TokenizerComesFromTheMetadata) {
  const auto file = GgufFile::Open(kModelFile);
  QST_ASSERT_OK(file);
  const auto tokenizer = ReadGgufTokenizer(**file);
  QST_ASSERT_OK(tokenizer);
  EXPECT_EQ(tokenizer->kind, TokenizerDefinition::Kind::kByteLevelBpe);
  ASSERT_EQ(tokenizer->tokens.size(), 48u);
  EXPECT_EQ(tokenizer->tokens[1], "<s>");
  EXPECT_EQ(tokenizer->token_types[1], TokenizerDefinition::TokenType::kControl);
  EXPECT_EQ(tokenizer->pre_tokenizer, "gpt-2");
  EXPECT_EQ(tokenizer->bos_id, 1);
  EXPECT_EQ(tokenizer->unk_id, 0);
  EXPECT_EQ(tokenizer->pad_id, std::nullopt);
  EXPECT_FALSE(tokenizer->add_bos);
  EXPECT_EQ(tokenizer->chat_template, "{{ messages[0]['content'] }}");
}

TEST(GgufModelTest, BadTokenizersAreRefused) {
  const auto read = [](GgufBuilder builder) {
    const std::string bytes = builder.Build("");
    const auto file = OpenBytes(bytes);
    return file.ok() ? ReadGgufTokenizer(**file).status() : file.status();
  };
  const auto base = [] {
    return GgufBuilder().Text("tokenizer.ggml.model", "gpt2").Texts("tokenizer.ggml.tokens", {"a", "b"});
  };
  QST_EXPECT_OK(read(base()));
  EXPECT_THAT(read(GgufBuilder()), StatusIs(absl::StatusCode::kNotFound, HasSubstr("no tokenizer")));
  EXPECT_THAT(read(GgufBuilder().Text("tokenizer.ggml.model", "bert").Texts("tokenizer.ggml.tokens", {"a"})),
              StatusIs(absl::StatusCode::kUnimplemented, HasSubstr("'bert'")));
  EXPECT_THAT(read(base().Int("tokenizer.ggml.bos_token_id", 2)),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("bos_token_id' is 2, there are 2 tokens")));
  EXPECT_THAT(read(base().Raw("tokenizer.ggml.token_type", 9,
                              Bytes<std::uint32_t>(5) + Bytes<std::uint64_t>(1) + Bytes<std::int32_t>(1))),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("token_type' has 1 entries")));
  EXPECT_THAT(read(base().Raw(
                  "tokenizer.ggml.token_type", 9,
                  Bytes<std::uint32_t>(5) + Bytes<std::uint64_t>(2) + Bytes<std::int32_t>(1) + Bytes<std::int32_t>(9))),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("holds 9")));
}

// A LLaMA file of one layer with all sizes minimal; `change` makes it unacceptable.
absl::Status CreateModel(const std::function<void(GgufBuilder&)>& change, bool with_heads = true) {
  GgufBuilder builder;
  builder.Text("general.architecture", "llama").Int("llama.embedding_length", 4).Int("llama.block_count", 1);
  builder.Int("llama.feed_forward_length", 4).Int("llama.context_length", 16);
  if (with_heads) builder.Int("llama.attention.head_count", 2);
  builder.Float("llama.attention.layer_norm_rms_epsilon", 1e-5f);
  builder.Tensor("token_embd.weight", {4, 4}, kF32, 0);
  change(builder);
  const std::string bytes = builder.Build(std::string(1024, '\0'));
  auto file = OpenBytes(bytes);
  if (!file.ok()) return file.status();
  return GgufModel::Create(*std::move(file)).status();
}

TEST(GgufModelTest, ModelsThatAreNotPlainLlamaAreRefused) {
  QST_EXPECT_OK(CreateModel([](GgufBuilder&) {}));
  const auto kUnimplemented = absl::StatusCode::kUnimplemented;
  const auto kInvalid = absl::StatusCode::kInvalidArgument;
  EXPECT_THAT(CreateModel([](GgufBuilder& b) { b.Int("llama.expert_count", 8); }),
              StatusIs(kUnimplemented, HasSubstr("8 experts")));
  EXPECT_THAT(CreateModel([](GgufBuilder& b) { b.Int("llama.rope.dimension_count", 1); }),
              StatusIs(kUnimplemented, HasSubstr("1 of 2 channels")));
  EXPECT_THAT(CreateModel([](GgufBuilder& b) { b.Text("llama.rope.scaling.type", "yarn"); }),
              StatusIs(kUnimplemented, HasSubstr("'yarn'")));
  EXPECT_THAT(CreateModel([](GgufBuilder& b) { b.Int("llama.attention.value_length", 4); }), StatusIs(kUnimplemented));
  EXPECT_THAT(CreateModel([](GgufBuilder& b) { b.Tensor("blk.0.attn_q_norm.weight", {4}, kF32, 64); }),
              StatusIs(kUnimplemented, HasSubstr("attn_q_norm")));
  EXPECT_THAT(CreateModel([](GgufBuilder& b) { b.Tensor("blk.1.attn_norm.weight", {4}, kF32, 64); }),
              StatusIs(kUnimplemented, HasSubstr("blk.1.")));
  EXPECT_THAT(CreateModel([](GgufBuilder& b) { b.Tensor("rope_freqs.weight", {1}, kF32, 64); }),
              StatusIs(kUnimplemented, HasSubstr("rope_freqs")));
  EXPECT_THAT(CreateModel([](GgufBuilder& b) {
                b.Tensor("blk.0.attn_q.weight", {4, 5}, kF32, 64);
              }),
              StatusIs(kInvalid, HasSubstr("5 outputs, the heads need 4")));
  EXPECT_THAT(CreateModel([](GgufBuilder& b) { b.Int("llama.attention.head_count_kv", 3); }),
              StatusIs(kInvalid, HasSubstr("num_key_value_heads")));
  EXPECT_THAT(CreateModel([](GgufBuilder&) {}, false), StatusIs(kInvalid, HasSubstr("head_count' is missing")));
  EXPECT_THAT(CreateModel(
                  [](GgufBuilder& b) {
                    b.Raw("llama.attention.head_count", 9,
                          Bytes<std::uint32_t>(4) + Bytes<std::uint64_t>(1) + Bytes<std::uint32_t>(2));
                  },
                  false),
              StatusIs(kUnimplemented, HasSubstr("differs from layer to layer")));
  const std::string other = GgufBuilder().Text("general.architecture", "gpt2").Build("");
  EXPECT_THAT(GgufModel::Create(*OpenBytes(other)), StatusIs(kUnimplemented, HasSubstr("'gpt2'")));
}

TEST(GgufModelTest, LinearRopeScalingIsKept) {
  const std::string bytes = GgufBuilder()
                                .Text("general.architecture", "llama")
                                .Int("llama.embedding_length", 4)
                                .Int("llama.block_count", 1)
                                .Int("llama.feed_forward_length", 4)
                                .Int("llama.context_length", 16)
                                .Int("llama.attention.head_count", 2)
                                .Float("llama.attention.layer_norm_rms_epsilon", 1e-6f)
                                .Text("llama.rope.scaling.type", "linear")
                                .Float("llama.rope.scaling.factor", 4.0f)
                                .Tensor("token_embd.weight", {4, 4}, kF32, 0)
                                .Build(std::string(64, '\0'));
  auto file = OpenBytes(bytes);
  QST_ASSERT_OK(file);
  const auto model = GgufModel::Create(*std::move(file));
  QST_ASSERT_OK(model);
  EXPECT_EQ((*model)->config().rope_scaling.type, RopeScalingType::kLinear);
  EXPECT_EQ((*model)->config().rope_scaling.factor, 4.0);
  EXPECT_TRUE((*model)->config().tie_word_embeddings);
}

TEST(GgufModelTest, Qwen2KeepsItsRowsInOrder) {
  const auto bytes_with = [](std::uint64_t window) {
    std::string data(64, '\0');
    for (int i = 0; i < 4 * 4; ++i) {
      const float value = static_cast<float>(i);
      data.append(reinterpret_cast<const char*>(&value), sizeof(value));
    }
    return GgufBuilder()
        .Text("general.architecture", "qwen2")
        .Int("qwen2.embedding_length", 4)
        .Int("qwen2.block_count", 1)
        .Int("qwen2.feed_forward_length", 4)
        .Int("qwen2.context_length", 16)
        .Int("qwen2.attention.head_count", 1)
        .Int("qwen2.attention.sliding_window", window)
        .Float("qwen2.attention.layer_norm_rms_epsilon", 1e-6f)
        .Float("qwen2.rope.freq_base", 1e6f)
        .Tensor("token_embd.weight", {4, 4}, kF32, 0)
        .Tensor("blk.0.attn_q.weight", {4, 4}, kF32, 64)
        .Build(data);
  };
  const std::string bytes = bytes_with(16);
  auto file = OpenBytes(bytes);
  QST_ASSERT_OK(file);
  const auto model = GgufModel::Create(*std::move(file));
  QST_ASSERT_OK(model);
  EXPECT_EQ((*model)->config().architecture, "Qwen2ForCausalLM");
  EXPECT_EQ((*model)->config().rope_theta, 1e6);
  EXPECT_TRUE((*model)->config().attention_bias);
  EXPECT_FALSE((*model)->config().attention_out_bias);
  std::vector<float> rows(16);
  QST_ASSERT_OK((*model)->ReadFloat("model.layers.0.self_attn.q_proj.weight", 0, 16, rows.data()));
  for (int i = 0; i < 16; ++i) EXPECT_EQ(rows[i], static_cast<float>(i));

  const std::string windowed = bytes_with(15);
  auto other = OpenBytes(windowed);
  QST_ASSERT_OK(other);
  EXPECT_THAT(GgufModel::Create(*std::move(other)),
              StatusIs(absl::StatusCode::kUnimplemented, HasSubstr("sliding window of 15")));
}

}  // namespace
}  // namespace qst
