// llama2.c checkpoints: small ones built byte by byte, broken ones, and real ones against their Hugging Face form.
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/support/status_matchers.h"
#include "tests/support/shared_data.h"
#include "worker/checkpoint/huggingface_folder.h"
#include "worker/checkpoint/llama2c_file.h"
#include "worker/checkpoint/model_source.h"
#include "worker/checkpoint/test_files.h"
#include "worker/text/tokenizer.h"
#include "worker/text/tokenizer_files.h"

namespace qst {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

struct Header {
  std::int32_t dim = 8, hidden_dim = 6, layers = 2, heads = 2, kv_heads = 1, vocab = 5, seq_len = 3;
};

// Every float is its index in the file, counted from 0.
std::string Checkpoint(const Header& h, int extra_floats = 0) {
  std::string file;
  for (const std::int32_t value : {h.dim, h.hidden_dim, h.layers, h.heads, h.kv_heads, h.vocab, h.seq_len}) {
    file += Bytes(value);
  }
  const int vocab = h.vocab < 0 ? -h.vocab : h.vocab;
  const int head_dim = h.dim / h.heads;
  const int kv = head_dim * h.kv_heads;
  const int layer = 2 * h.dim + 2 * h.dim * h.dim + 2 * kv * h.dim + 3 * h.dim * h.hidden_dim;
  const int floats = vocab * h.dim * (h.vocab < 0 ? 2 : 1) + h.layers * layer + h.dim + h.seq_len * head_dim;
  for (int i = 0; i < floats + extra_floats; ++i) file += Bytes(static_cast<float>(i));
  return file;
}

absl::StatusOr<std::unique_ptr<Llama2cFile>> FromBytes(const std::string& bytes) {
  return Llama2cFile::FromMemory(reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size(), "m.bin");
}

std::vector<float> ReadAll(const TensorSource& source, const std::string& name) {
  const TensorInfo* info = source.Find(name);
  EXPECT_NE(info, nullptr) << name;
  if (info == nullptr) return {};
  std::vector<float> values(static_cast<std::size_t>(info->num_elems));
  QST_EXPECT_OK(source.ReadFloat(name, 0, info->num_elems, values.data()));
  return values;
}

std::string TokenizerFile(const std::vector<std::string>& tokens) {
  std::string file = Bytes<std::int32_t>(7);
  float score = 0;
  for (const std::string& token : tokens) {
    file += Bytes(score--) + Bytes(static_cast<std::int32_t>(token.size())) + token;
  }
  return file;
}

TEST(Llama2cTest, TensorsFollowTheOrderOfTheFile) {
  const std::string bytes = Checkpoint({});
  const auto file = FromBytes(bytes);
  QST_ASSERT_OK(file);
  const ModelConfig& config = (*file)->config();
  EXPECT_EQ(config.hidden_size, 8);
  EXPECT_EQ(config.head_dim, 4);
  EXPECT_EQ(config.num_kv_heads, 1);
  EXPECT_EQ(config.max_position_embeddings, 3);
  EXPECT_TRUE(config.tie_word_embeddings);
  EXPECT_THAT(config.eos_token_ids, ElementsAre(2, 1));
  QST_EXPECT_OK(CheckModelTensors(config, **file, "m.bin"));
  // Where each tensor starts, by hand: embedding 40, then per layer norms 8, q 64, k 32, v 32, o 64, norms 8, gate 48,
  // down 48, up 48, each for both layers.
  EXPECT_EQ(ReadAll(**file, "model.layers.0.input_layernorm.weight").front(), 40);
  EXPECT_EQ(ReadAll(**file, "model.layers.1.input_layernorm.weight").front(), 48);
  EXPECT_EQ(ReadAll(**file, "model.layers.1.self_attn.v_proj.weight").front(), 56 + 128 + 64 + 32);
  EXPECT_EQ(ReadAll(**file, "model.layers.1.mlp.down_proj.weight").front(), 56 + 128 + 64 + 64 + 128 + 16 + 96 + 48);
  EXPECT_EQ(ReadAll(**file, "model.norm.weight").back(), 56 + 128 + 64 + 64 + 128 + 16 + 3 * 96 + 7);
  EXPECT_EQ((*file)->Find("lm_head.weight"), nullptr);
}

TEST(Llama2cTest, RowsOfQueryAndKeyHeadsAreSplitInHalves) {
  const std::string bytes = Checkpoint({});
  const auto file = FromBytes(bytes);
  QST_ASSERT_OK(file);
  // Rows of 8 floats; heads of 4 rows, of which the file has 0 2 1 3.
  const int q = 56;
  const std::vector<float> values = ReadAll(**file, "model.layers.0.self_attn.q_proj.weight");
  const int file_rows[] = {0, 2, 1, 3, 4, 6, 5, 7};
  for (int row = 0; row < 8; ++row) {
    for (int column = 0; column < 8; ++column) {
      EXPECT_EQ(values[row * 8 + column], q + file_rows[row] * 8 + column) << row << " " << column;
    }
  }
  // Any range gives the same as the whole.
  for (std::int64_t first = 0; first < 64; first += 5) {
    for (std::int64_t count = 0; count <= 64 - first; count += 7) {
      std::vector<float> part(static_cast<std::size_t>(count));
      QST_ASSERT_OK((*file)->ReadFloat("model.layers.0.self_attn.q_proj.weight", first, count, part.data()));
      EXPECT_EQ(part, std::vector<float>(values.begin() + first, values.begin() + first + count));
    }
  }
}

TEST(Llama2cTest, ANegativeVocabularyMeansAHeadOfItsOwn) {
  Header header;
  header.vocab = -5;
  const std::string bytes = Checkpoint(header);
  const auto file = FromBytes(bytes);
  QST_ASSERT_OK(file);
  EXPECT_FALSE((*file)->config().tie_word_embeddings);
  EXPECT_EQ((*file)->config().vocab_size, 5);
  EXPECT_EQ(ReadAll(**file, "lm_head.weight").back(), static_cast<float>((bytes.size() - 28) / 4 - 1));
}

TEST(Llama2cTest, BrokenFilesAreRefusedInOneClearLine) {
  const std::string good = Checkpoint({});
  EXPECT_THAT(FromBytes(good.substr(0, 20)), StatusIs(absl::StatusCode::kDataLoss, HasSubstr("cut short")));
  EXPECT_THAT(FromBytes(good.substr(0, good.size() - 4)),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("its header asks for")));
  EXPECT_THAT(FromBytes(Checkpoint({}, 1)), StatusIs(absl::StatusCode::kDataLoss));
  Header header;
  header.heads = 0;
  EXPECT_THAT(FromBytes(Bytes<std::int32_t>(8) + std::string(24, '\0')),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("n_heads 0")));
  EXPECT_THAT(FromBytes("24ka" + Bytes<std::int32_t>(2) + std::string(248, '\0')),
              StatusIs(absl::StatusCode::kUnimplemented, HasSubstr("version 2")));
  std::string negative = good;
  negative.replace(4, 4, Bytes<std::int32_t>(-6));
  EXPECT_THAT(FromBytes(negative), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("intermediate_size is -6")));
}

TEST(Llama2cTest, TheTokenizerFileBecomesADefinition) {
  const std::string file = TokenizerFile({"<unk>", "\n<s>\n", "\n</s>\n", "<0x0A>", " a"});
  const auto definition = ParseLlama2cTokenizer(file, 5, "tok5.bin");
  QST_ASSERT_OK(definition);
  EXPECT_THAT(definition->tokens, ElementsAre("<unk>", "<s>", "</s>", "<0x0A>",
                                              "\xE2\x96\x81"
                                              "a"));
  EXPECT_THAT(definition->scores, ElementsAre(0, -1, -2, -3, -4));
  EXPECT_EQ(definition->token_types[3], TokenizerDefinition::TokenType::kByte);
  EXPECT_EQ(definition->bos_id, 1);
  EXPECT_TRUE(definition->add_bos);
  for (std::size_t length = 0; length < file.size(); ++length) {
    EXPECT_THAT(ParseLlama2cTokenizer(file.substr(0, length), 5, "t"), StatusIs(absl::StatusCode::kDataLoss)) << length;
  }
  EXPECT_THAT(ParseLlama2cTokenizer(file, 4, "t"),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("after token 3")));
  EXPECT_THAT(ParseLlama2cTokenizer(Bytes<std::int32_t>(7) + Bytes(0.f) + Bytes<std::int32_t>(-1), 5, "t"),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("token 0 would have 4294967295 bytes")));
}

TEST(Llama2cTest, AModelIsRecognisedByItsContentsWhateverItIsCalled) {
  TempFolder folder;
  std::filesystem::create_directory(folder.Path("model"));
  folder.Write("model/weights.dat", Checkpoint({}));
  EXPECT_THAT(OpenModelSource(folder.Path("model/weights.dat")),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("tok5.bin or tokenizer.bin")));
  // The name with the size of the vocabulary comes first.
  folder.Write("model/tokenizer.bin", "of another model");
  folder.Write("model/tok5.bin", TokenizerFile({"<unk>", "\n<s>\n", "\n</s>\n", "a", "b"}));
  for (const char* path : {"model/weights.dat", "model"}) {
    const auto source = OpenModelSource(folder.Path(path));
    QST_ASSERT_OK(source);
    EXPECT_EQ(source->format, "llama2.c");
    EXPECT_TRUE(source->tokenizer.has_value());
  }
  folder.Write("model/other.dat", Checkpoint({}));
  EXPECT_THAT(OpenModelSource(folder.Path("model")), StatusIs(absl::StatusCode::kNotFound, HasSubstr("config.json")));
}

class Llama2cRealTest : public testing::TestWithParam<const char*> {};

TEST_P(Llama2cRealTest, EqualsItsHuggingFaceForm) {
  const std::string name = GetParam();
  const auto original = SharedDataPath("models/" + name);
  const auto converted = SharedDataPath("models/" + name + "-hf");
  if (!original.has_value() || !converted.has_value()) GTEST_SKIP() << "no models/" << name << " in the shared data";
  const auto source = OpenModelSource(absl::StrCat(*original, "/", name, ".bin"));
  const auto expected = OpenModelSource(*converted);
  QST_ASSERT_OK(source);
  QST_ASSERT_OK(expected);
  EXPECT_EQ(source->config.norm_eps, expected->config.norm_eps);
  EXPECT_EQ(source->config.rope_theta, expected->config.rope_theta);
  EXPECT_EQ(source->config.max_position_embeddings, expected->config.max_position_embeddings);
  for (const ModelTensor& tensor : ModelTensors(expected->config)) {
    const std::vector<float> a = ReadAll(*source->tensors, tensor.name);
    const std::vector<float> b = ReadAll(*expected->tensors, tensor.name);
    ASSERT_EQ(a.size(), b.size());
    EXPECT_EQ(std::memcmp(a.data(), b.data(), a.size() * sizeof(float)), 0) << tensor.name;
  }
  const auto files = ToTokenizerFiles(*source->tokenizer);
  QST_ASSERT_OK(files);
  const auto from_bin = Tokenizer::FromFiles(*files);
  const auto reference_files = ReadTokenizerFiles(*converted);
  QST_ASSERT_OK(reference_files);
  const auto from_json = Tokenizer::FromFiles(*reference_files);
  QST_ASSERT_OK(from_bin);
  QST_ASSERT_OK(from_json);
  for (const char* text : {"", " ", "Once upon a time, there was a little girl.", "  two  spaces\n\nlines\t.",
                           "na\xC3\xAFve \xE2\x82\xAC \xF0\x9F\x98\x80", "<s> is no token here </s>"}) {
    const auto expected_ids = (*from_json)->Encode(text, true);
    QST_ASSERT_OK(expected_ids);
    const auto actual_ids = (*from_bin)->Encode(text, true);
    QST_ASSERT_OK(actual_ids);
    EXPECT_EQ(*actual_ids, *expected_ids) << text;
  }
}

INSTANTIATE_TEST_SUITE_P(Models, Llama2cRealTest, testing::Values("stories260K", "aidreams260K"));

}  // namespace
}  // namespace qst
