#include "worker/text/tokenizer.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/support/status_matchers.h"
#include "tests/support/shared_data.h"
#include "worker/text/json_util.h"
#include "worker/text/utf8.h"

namespace qst {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;
using TokenType = TokenizerDefinition::TokenType;

constexpr absl::StatusCode kInvalid = absl::StatusCode::kInvalidArgument;
constexpr absl::StatusCode kUnimplemented = absl::StatusCode::kUnimplemented;

std::string ReadFile(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(stream), {});
}

void WriteFile(const std::string& path, absl::string_view text) {
  std::ofstream(path, std::ios::binary).write(text.data(), static_cast<std::streamsize>(text.size()));
}

std::string TestData(const std::string& name) { return absl::StrCat("worker/text/testdata/", name); }

std::vector<json> ReadLines(const std::string& path) {
  std::ifstream stream(path);
  std::vector<json> lines;
  for (std::string line; std::getline(stream, line);) lines.push_back(ParseJson(line).value());
  return lines;
}

// An empty folder that is removed at the end.
class TemporaryFolder {
 public:
  TemporaryFolder() : path_(absl::StrCat(testing::TempDir(), "/tokenizer_test.", getpid())) {
    fs::remove_all(path_);
    fs::create_directories(path_);
  }
  ~TemporaryFolder() { fs::remove_all(path_); }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// Compares ids and decoded text with what the Hugging Face library gave.
void ExpectGolden(const Tokenizer& tokenizer, const std::string& golden_file) {
  const std::vector<json> texts = ReadLines(TestData("texts.jsonl"));
  const std::vector<json> golden = ReadLines(TestData(golden_file));
  ASSERT_GT(texts.size(), 200);
  ASSERT_EQ(texts.size(), golden.size());
  for (size_t i = 0; i < texts.size(); ++i) {
    const std::string text = texts[i].get<std::string>();
    const auto expected = golden[i]["ids"].get<std::vector<int32_t>>();
    const auto ids = tokenizer.Encode(text, true);
    QST_ASSERT_OK(ids);
    ASSERT_EQ(*ids, expected) << golden_file << " line " << i + 1 << ": " << texts[i];
    ASSERT_EQ(tokenizer.Decode(expected, true), golden[i].value("decoded", text)) << golden_file << " line " << i + 1;
  }
}

// Compares the text of random ids with the library's, and with what a stream gives piece by piece.
void ExpectDecoded(const Tokenizer& tokenizer, const std::string& golden_file) {
  const std::vector<json> lines = ReadLines(TestData(golden_file));
  ASSERT_GT(lines.size(), 30);
  for (const json& line : lines) {
    EXPECT_EQ(tokenizer.Decode(line["ids"].get<std::vector<int32_t>>(), true), line["text"].get<std::string>()) << line;
  }
}

// A stream's pieces are whole characters, and joined what Decode gives: for random ids of which many are bytes, many
// name special tokens, and some name nothing.
void ExpectStreamsAgree(const Tokenizer& tokenizer) {
  std::mt19937 random(1);
  auto below = [&](int32_t limit) { return static_cast<int32_t>(random() % static_cast<uint32_t>(limit)); };
  for (int sequence = 0; sequence < 400; ++sequence) {
    std::vector<int32_t> ids(1 + below(60));
    const int32_t top = sequence % 2 == 0 ? tokenizer.vocab_size() + 2 : std::min(300, tokenizer.vocab_size());
    for (int32_t& id : ids) id = below(top);
    for (const bool skip_special : {false, true}) {
      Tokenizer::TextStream stream(&tokenizer, skip_special);
      std::string joined;
      for (const int32_t id : ids) {
        const std::string piece = stream.Add(id);
        ASSERT_TRUE(IsValidUtf8(piece)) << "a piece is not made of whole characters";
        joined += piece;
      }
      joined += stream.Finish();
      ASSERT_EQ(joined, tokenizer.Decode(ids, skip_special));
    }
  }
}

class SmallTokenizerTest : public testing::TestWithParam<const char*> {};

TEST_P(SmallTokenizerTest, EncodesAndDecodesLikeTheLibrary) {
  const auto tokenizer = Tokenizer::FromModelFolder(TestData(GetParam()));
  QST_ASSERT_OK(tokenizer);
  ExpectGolden(**tokenizer, absl::StrCat(GetParam(), "/golden.jsonl"));
  ExpectDecoded(**tokenizer, absl::StrCat(GetParam(), "/decoded.jsonl"));
  ExpectStreamsAgree(**tokenizer);
}

INSTANTIATE_TEST_SUITE_P(Families, SmallTokenizerTest,
                         testing::Values("byte_level", "split_regex", "sentence_piece", "metaspace", "qwen2",
                                         "classifier", "compatible"));

class SentencePieceFileTest : public testing::TestWithParam<const char*> {};

TEST_P(SentencePieceFileTest, EncodesLikeSentencePiece) {
  const auto tokenizer = Tokenizer::FromModelFolder(TestData(GetParam()));
  QST_ASSERT_OK(tokenizer);
  const std::vector<json> texts = ReadLines(TestData(absl::StrCat(GetParam(), "/texts.jsonl")));
  const std::vector<json> golden = ReadLines(TestData(absl::StrCat(GetParam(), "/golden.jsonl")));
  ASSERT_GT(texts.size(), 150);
  ASSERT_EQ(texts.size(), golden.size());
  for (size_t i = 0; i < texts.size(); ++i) {
    const auto ids = (*tokenizer)->Encode(texts[i].get<std::string>(), true);
    QST_ASSERT_OK(ids);
    ASSERT_EQ(*ids, golden[i]["ids"].get<std::vector<int32_t>>()) << "line " << i + 1 << ": " << texts[i];
  }
  ExpectStreamsAgree(**tokenizer);
}

INSTANTIATE_TEST_SUITE_P(Kinds, SentencePieceFileTest, testing::Values("piece_bytes", "piece_unknown"));

struct Published {
  const char* folder;
  const char* golden;
};

class PublishedTokenizerTest : public testing::TestWithParam<Published> {};

TEST_P(PublishedTokenizerTest, EncodesAndDecodesLikeTheLibrary) {
  const auto folder = SharedDataPath(GetParam().folder);
  if (!folder.has_value()) GTEST_SKIP() << "no shared data: " << GetParam().folder;
  const auto tokenizer = Tokenizer::FromModelFolder(*folder);
  QST_ASSERT_OK(tokenizer);
  ExpectGolden(**tokenizer, absl::StrCat(GetParam().golden, ".jsonl"));
  ExpectDecoded(**tokenizer, absl::StrCat(GetParam().golden, "_decoded.jsonl"));
  ExpectStreamsAgree(**tokenizer);
}

INSTANTIATE_TEST_SUITE_P(Published, PublishedTokenizerTest,
                         testing::Values(Published{"tokenizers/smollm2", "smollm2"},
                                         Published{"tokenizers/tinyllama", "tinyllama"},
                                         Published{"models/stories260K-hf", "stories260k"}));

TEST(TokenizerTest, FolderInGpt2FormIsConverted) {
  const auto gpt2 = SharedDataPath("tokenizers/gpt2");
  const auto opt = SharedDataPath("tokenizers/opt");
  if (!gpt2.has_value() || !opt.has_value()) GTEST_SKIP() << "no shared data: tokenizers/gpt2, tokenizers/opt";
  // By the names that the files were published with, and by those that the transformers library gives them.
  auto tokenizer = Tokenizer::FromModelFolder(*gpt2);
  QST_ASSERT_OK(tokenizer);
  ExpectGolden(**tokenizer, "gpt2.jsonl");
  ExpectStreamsAgree(**tokenizer);
  EXPECT_EQ((*tokenizer)->eos_id(), 50256);

  TemporaryFolder folder;
  fs::copy(*opt + "/gpt2-vocab.json", folder.path() + "/vocab.json");
  fs::copy(*opt + "/gpt2-merges.txt", folder.path() + "/merges.txt");
  WriteFile(folder.path() + "/special_tokens_map.json", R"({"bos_token": "<s>", "eos_token": {"content": "</s>"}})");
  tokenizer = Tokenizer::FromModelFolder(folder.path());
  QST_ASSERT_OK(tokenizer);
  ExpectGolden(**tokenizer, "opt.jsonl");
  ExpectStreamsAgree(**tokenizer);
  EXPECT_EQ((*tokenizer)->bos_id(), 0);
  EXPECT_EQ((*tokenizer)->eos_id(), 2);
  QST_EXPECT_OK(Tokenizer::FromModelFolder(*opt));
}

TEST(TokenizerTest, PublishedSentencePieceModelIsThatOfItsTokenizerJson) {
  const auto llama = SharedDataPath("tokenizers/llama");
  if (!llama.has_value()) GTEST_SKIP() << "no shared data: tokenizers/llama";
  const auto tokenizer = Tokenizer::FromModelFolder(*llama);
  QST_ASSERT_OK(tokenizer);
  ExpectGolden(**tokenizer, "tinyllama.jsonl");
  ExpectDecoded(**tokenizer, "tinyllama_decoded.jsonl");
  ExpectStreamsAgree(**tokenizer);
  EXPECT_TRUE((*tokenizer)->adds_bos());
  EXPECT_TRUE((*tokenizer)->adds_prefix_space());
  EXPECT_EQ((*tokenizer)->unk_id(), 0);
  EXPECT_EQ((*tokenizer)->bos_id(), 1);
  EXPECT_EQ((*tokenizer)->eos_id(), 2);
}

// What a GGUF file of a byte-level tokenizer holds.
TokenizerDefinition DefinitionOf(const std::string& tokenizer_json) {
  const json root = ParseJson(ReadFile(tokenizer_json)).value();
  TokenizerDefinition definition;
  const json& vocabulary = root["model"]["vocab"];
  definition.tokens.resize(vocabulary.size());
  for (const auto& [token, id] : vocabulary.items()) definition.tokens.at(id.get<size_t>()) = token;
  for (const json& merge : root["model"]["merges"]) {
    definition.merges.push_back(merge.is_string()
                                    ? merge.get<std::string>()
                                    : absl::StrCat(merge[0].get<std::string>(), " ", merge[1].get<std::string>()));
  }
  definition.token_types.assign(definition.tokens.size(), TokenType::kNormal);
  for (const json& token : root["added_tokens"]) {
    definition.token_types.at(token["id"].get<size_t>()) = TokenType::kControl;
  }
  return definition;
}

TEST(TokenizerTest, ByteLevelDefinitionGivesTheSameTokenizer) {
  const auto folder = SharedDataPath("tokenizers/smollm2");
  if (!folder.has_value()) GTEST_SKIP() << "no shared data: tokenizers/smollm2";
  TokenizerDefinition definition = DefinitionOf(*folder + "/tokenizer.json");
  definition.pre_tokenizer = "smollm";
  definition.bos_id = 1;
  definition.eos_id = 2;
  definition.unk_id = 0;
  definition.pad_id = 2;
  definition.chat_template = "{{ x }}";
  const auto tokenizer = Tokenizer::FromDefinition(definition);
  QST_ASSERT_OK(tokenizer);
  ExpectGolden(**tokenizer, "smollm2.jsonl");
  EXPECT_EQ((*tokenizer)->bos_id(), 1);
  EXPECT_EQ((*tokenizer)->eos_id(), 2);
  EXPECT_EQ((*tokenizer)->pad_id(), 2);
  EXPECT_FALSE((*tokenizer)->adds_bos());
  EXPECT_FALSE((*tokenizer)->adds_prefix_space());
  EXPECT_EQ((*tokenizer)->chat_template(), "{{ x }}");
  EXPECT_EQ((*tokenizer)->vocab_size(), 49152);
}

// A llama2.c tokenizer file: int32 longest, then per token float32 score, int32 size, bytes.
void ReadScores(const std::string& path, std::vector<float>* scores) {
  const std::string bytes = ReadFile(path);
  for (size_t at = 4; at + 8 <= bytes.size();) {
    float score;
    int32_t size;
    std::memcpy(&score, &bytes[at], 4);
    std::memcpy(&size, &bytes[at + 4], 4);
    scores->push_back(score);
    at += 8 + static_cast<size_t>(size);
  }
}

TEST(TokenizerTest, ScoresGiveTheMergesOfSentencePiece) {
  const struct {
    const char* tokenizer;
    const char* scores;
    const char* golden;
  } kCases[] = {{"tokenizers/tinyllama", "tokenizers/llama/tokenizer.bin", "tinyllama.jsonl"},
                {"models/stories260K-hf", "models/stories260K/tok512.bin", "stories260k.jsonl"}};
  for (const auto& test : kCases) {
    const auto folder = SharedDataPath(test.tokenizer);
    const auto scores = SharedDataPath(test.scores);
    if (!folder.has_value() || !scores.has_value()) GTEST_SKIP() << "no shared data: " << test.tokenizer;
    TokenizerDefinition definition = DefinitionOf(*folder + "/tokenizer.json");
    definition.kind = TokenizerDefinition::Kind::kSentencePieceBpe;
    definition.merges.clear();
    for (int byte = 3; byte < 259; ++byte) definition.token_types[byte] = TokenType::kByte;
    definition.token_types[0] = TokenType::kUnknown;
    ReadScores(*scores, &definition.scores);
    definition.bos_id = 1;
    definition.eos_id = 2;
    definition.add_bos = true;
    const auto tokenizer = Tokenizer::FromDefinition(definition);
    QST_ASSERT_OK(tokenizer);
    ExpectGolden(**tokenizer, test.golden);
    EXPECT_TRUE((*tokenizer)->adds_bos());
    EXPECT_TRUE((*tokenizer)->adds_prefix_space());
    EXPECT_EQ((*tokenizer)->unk_id(), 0);
  }
}

TEST(TokenizerTest, WrittenFilesReadBackTheSame) {
  TemporaryFolder folder;
  const auto files = ReadTokenizerFiles(TestData("byte_level"));
  QST_ASSERT_OK(files);
  QST_ASSERT_OK(WriteTokenizerFiles(*files, folder.path()));
  EXPECT_FALSE(fs::exists(folder.path() + "/tokenizer.json.tmp"));
  const auto tokenizer = Tokenizer::FromModelFolder(folder.path());
  QST_ASSERT_OK(tokenizer);
  ExpectGolden(**tokenizer, "byte_level/golden.jsonl");
  EXPECT_THAT(WriteTokenizerFiles(*files, folder.path() + "/missing"), StatusIs(absl::StatusCode::kUnavailable));
}

TEST(TokenizerTest, RolesComeFromTheFilesBesideIt) {
  TokenizerFiles files;
  files.tokenizer_json = ReadFile(TestData("byte_level/tokenizer.json"));
  files.tokenizer_config_json = R"({"bos_token": "<|im_start|>", "eos_token": {"content": "<|im_end|>"},
      "pad_token": "[unknown pad]", "chat_template": [{"name": "tool", "template": "T"}, {"name": "default", "template": "D"}]})";
  files.special_tokens_map_json = R"({"eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"})";
  files.generation_config_json = R"({"eos_token_id": [0, 99999, "x", -1]})";
  auto tokenizer = Tokenizer::FromFiles(files);
  QST_ASSERT_OK(tokenizer);
  EXPECT_EQ((*tokenizer)->bos_id(), 1);
  EXPECT_EQ((*tokenizer)->eos_id(), 2);
  EXPECT_EQ((*tokenizer)->unk_id(), 0);
  EXPECT_EQ((*tokenizer)->pad_id(), std::nullopt);
  EXPECT_THAT((*tokenizer)->stop_ids(), ElementsAre(0, 2));
  EXPECT_EQ((*tokenizer)->chat_template(), "D");
  EXPECT_FALSE((*tokenizer)->adds_bos());

  files.chat_template_jinja = "J";
  files.tokenizer_config_json = R"({"eos_token": "<nope>"})";
  EXPECT_THAT(Tokenizer::FromFiles(files), StatusIs(kInvalid, HasSubstr("<nope>")));
  files.tokenizer_config_json = R"({"eos_token": 7})";
  EXPECT_THAT(Tokenizer::FromFiles(files), StatusIs(kInvalid, HasSubstr("tokenizer_config.json")));
  files.tokenizer_config_json = "";
  files.special_tokens_map_json = "";
  tokenizer = Tokenizer::FromFiles(files);
  QST_ASSERT_OK(tokenizer);
  EXPECT_EQ((*tokenizer)->eos_id(), 0) << "from generation_config.json";
  EXPECT_EQ((*tokenizer)->chat_template(), "J");
}

TEST(TokenizerTest, TokensAndIdsNameEachOther) {
  const auto tokenizer = Tokenizer::FromModelFolder(TestData("byte_level"));
  QST_ASSERT_OK(tokenizer);
  EXPECT_EQ((*tokenizer)->TokenToId("<|im_end|>"), 2);
  EXPECT_EQ((*tokenizer)->IdToToken(2), "<|im_end|>");
  EXPECT_EQ((*tokenizer)->TokenToId("no such token"), std::nullopt);
  EXPECT_EQ((*tokenizer)->IdToToken(-1), std::nullopt);
  EXPECT_EQ((*tokenizer)->IdToToken((*tokenizer)->vocab_size()), std::nullopt);
  EXPECT_EQ((*tokenizer)->Decode({-5, 1 << 30, 2}, false), "<|im_end|>");
  EXPECT_EQ((*tokenizer)->Decode({-5, 1 << 30, 2}, true), "");
}

TEST(TokenizerTest, BytesThatAreNotTextBecomeReplacementCharacters) {
  const auto tokenizer = Tokenizer::FromModelFolder(TestData("byte_level"));
  QST_ASSERT_OK(tokenizer);
  const auto ids = (*tokenizer)->Encode("a\xFF\xE2\x82z\xF0\x9F", false);
  QST_ASSERT_OK(ids);
  EXPECT_EQ((*tokenizer)->Decode(*ids, false), "a\xEF\xBF\xBD\xEF\xBF\xBDz\xEF\xBF\xBD");
}

// Each of these has made some tokenizer quadratic.
TEST(TokenizerTest, AMillionEqualCharactersTakeSeconds) {
  for (const char* folder : {"byte_level", "split_regex", "sentence_piece", "metaspace"}) {
    const auto tokenizer = Tokenizer::FromModelFolder(TestData(folder));
    QST_ASSERT_OK(tokenizer);
    for (const char* unit : {"a", " ", "1", "\n", "=", "\xE5\xAD\x97", "\xF0\x9F\x99\x82", "ab ", "<|", "'"}) {
      std::string text;
      const size_t size = *unit == 'a' || *unit == ' ' ? 1000000 : 100000;
      while (text.size() < size) text += unit;
      const auto start = std::chrono::steady_clock::now();
      const auto ids = (*tokenizer)->Encode(text, false);
      const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
      QST_ASSERT_OK(ids);
      // The "metaspace" decoder drops a space that the text begins with, as the library's does.
      const std::string decoded = (*tokenizer)->Decode(*ids, false);
      EXPECT_TRUE(decoded == text || " " + decoded == text) << folder << " " << unit;
      EXPECT_LT(elapsed.count(), 20) << folder << " " << unit;
    }
  }
}

std::string WithComponent(const std::string& member, const std::string& value) {
  json root = ParseJson(ReadFile(TestData("byte_level/tokenizer.json"))).value();
  root[member] = ParseJson(value).value();
  return root.dump();
}

TEST(TokenizerTest, ComponentsThatAreNotSupportedAreNamed) {
  const struct {
    const char* member;
    const char* value;
    const char* message;
  } kCases[] = {
      {"normalizer", R"({"type": "Precompiled", "precompiled_charsmap": ""})", "normalizer: type \"Precompiled\""},
      {"normalizer", R"({"type": "Sequence", "normalizers": [{"type": "BertNormalizer"}]})", "BertNormalizer"},
      {"pre_tokenizer", R"({"type": "BertPreTokenizer"})", "pre_tokenizer: type \"BertPreTokenizer\""},
      {"pre_tokenizer", R"({"type": "Split", "pattern": {"Regex": "\\h+"}, "behavior": "Isolated"})", "\\h"},
      {"pre_tokenizer", R"({"type": "Split", "pattern": {"Regex": "[a&&b]"}, "behavior": "Isolated"})", "&&"},
      {"decoder", R"({"type": "WordPiece"})", "decoder: type \"WordPiece\""},
      {"post_processor", R"({"type": "Mystery"})", "post_processor: type \"Mystery\""},
      {"model", R"({"type": "Unigram", "vocab": []})", "model: type \"Unigram\""},
      {"model", R"({"type": "BPE", "vocab": {}, "merges": [], "dropout": 0.1})", "dropout"},
      {"model", R"({"type": "BPE", "vocab": {}, "merges": [], "end_of_word_suffix": "</w>"})", "end_of_word_suffix"},
  };
  for (const auto& test : kCases) {
    TokenizerFiles files;
    files.tokenizer_json = WithComponent(test.member, test.value);
    EXPECT_THAT(Tokenizer::FromFiles(files), StatusIs(kUnimplemented, HasSubstr(test.message))) << test.value;
  }
}

TEST(TokenizerTest, MalformedFilesAreRefused) {
  const struct {
    const char* member;
    const char* value;
  } kCases[] = {
      {"model", "null"},
      {"model", "[]"},
      {"model", R"({"type": "BPE", "vocab": {"a": 0, "b": 0}, "merges": []})"},
      {"model", R"({"type": "BPE", "vocab": {"a": -1}, "merges": []})"},
      {"model", R"({"type": "BPE", "vocab": {"a": 2000000000}, "merges": []})"},
      {"model", R"({"type": "BPE", "vocab": {"a": 1e99}, "merges": []})"},
      {"model", R"({"type": "BPE", "vocab": {"a": 18446744073709551615}, "merges": []})"},
      {"model", R"({"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": ["a b"]})"},
      {"model", R"({"type": "BPE", "vocab": {"a": 0, "aa": 1}, "merges": ["aa"]})"},
      {"model", R"({"type": "BPE", "vocab": {"a": 0, "aa": 1}, "merges": [["a"]]})"},
      {"model", R"({"type": "BPE", "vocab": {"a": 0}, "merges": [], "unk_token": "u"})"},
      {"model", R"({"type": "BPE", "vocab": {"a": 0}, "merges": [], "byte_fallback": 1})"},
      {"added_tokens", R"([{"id": 5000000000, "content": "x"}])"},
      {"added_tokens", R"([{"id": 700, "content": "<x>"}, {"id": 700, "content": "<y>"}])"},
      {"added_tokens", R"({"id": 1})"},
      {"pre_tokenizer", R"({"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated"})"},
      {"pre_tokenizer", R"({"type": "Split", "pattern": {"Regex": "a"}, "behavior": "Sideways"})"},
      {"pre_tokenizer", R"({"type": "Sequence"})"},
      {"pre_tokenizer", R"({"type": "Metaspace", "replacement": ""})"},
      {"normalizer", R"({"type": "Replace", "pattern": {"String": ""}, "content": "x"})"},
      {"model", R"({"type": "BPE", "vocab": {"a": 0, "aa": 1}, "merges": ["a a"], "merge_ranks": [1]})"},
      {"model", R"({"type": "BPE", "vocab": {"a": 0, "aa": 1}, "merges": ["a a"], "merge_ranks": []})"},
      {"decoder", R"({"type": "Strip", "content": "", "start": 1, "stop": 0})"},
      {"decoder", R"({"type": "Strip", "content": "ab", "start": 1, "stop": 0})"},
      {"decoder", R"({"type": "Strip", "content": "a", "start": -1, "stop": 0})"},
      {"pre_tokenizer", R"({"type": "Split", "pattern": {"String": ""}, "behavior": "Isolated"})"},
      {"post_processor", R"({"type": "RobertaProcessing", "cls": ["x", 0]})"},
      {"post_processor", R"({"type": "BertProcessing", "cls": ["x", 0], "sep": ["y", 1000000]})"},
      {"post_processor", R"({"type": "TemplateProcessing", "single": []})"},
      {"post_processor", R"({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "q"}}]})"},
  };
  for (const auto& test : kCases) {
    TokenizerFiles files;
    files.tokenizer_json = WithComponent(test.member, test.value);
    EXPECT_THAT(Tokenizer::FromFiles(files), StatusIs(kInvalid, HasSubstr("tokenizer.json"))) << test.value;
  }
  TokenizerFiles files;
  for (const char* text : {"", "{", "[]", "3", "{}", "\xFF"}) {
    files.tokenizer_json = text;
    EXPECT_THAT(Tokenizer::FromFiles(files), StatusIs(kInvalid, HasSubstr("tokenizer.json"))) << text;
  }
  std::string deep = "{\"type\":\"Sequence\",\"pretokenizers\":[]}";
  for (int i = 0; i < 1000; ++i) deep = absl::StrCat("{\"type\":\"Sequence\",\"pretokenizers\":[", deep, "]}");
  files.tokenizer_json = WithComponent("pre_tokenizer", deep);
  EXPECT_THAT(Tokenizer::FromFiles(files), StatusIs(kInvalid, HasSubstr("too deep")));
}

TEST(TokenizerTest, FolderWithoutTokenizerIsNotFound) {
  TemporaryFolder folder;
  EXPECT_THAT(Tokenizer::FromModelFolder(folder.path()),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr(folder.path())));
  EXPECT_THAT(Tokenizer::FromModelFolder(folder.path() + "/no"), StatusIs(absl::StatusCode::kNotFound));
  fs::create_directory(folder.path() + "/tokenizer.json");
  EXPECT_THAT(Tokenizer::FromModelFolder(folder.path()), StatusIs(kInvalid, HasSubstr("not a file")));
}

TEST(TokenizerDefinitionTest, PartsThatDoNotFitAreRefused) {
  TokenizerDefinition good;
  good.tokens = {"a", "b", "ab"};
  good.merges = {"a b"};
  good.pre_tokenizer = "gpt-2";
  QST_ASSERT_OK(ToTokenizerFiles(good));

  auto bad = good;
  bad.tokens.clear();
  EXPECT_THAT(ToTokenizerFiles(bad), StatusIs(kInvalid));
  bad = good;
  bad.tokens[2] = "a";
  EXPECT_THAT(ToTokenizerFiles(bad), StatusIs(kInvalid, HasSubstr("tokens 0 and 2 are equal")));
  bad = good;
  bad.tokens[1] = "\xFF";
  EXPECT_THAT(ToTokenizerFiles(bad), StatusIs(kInvalid, HasSubstr("token 1")));
  bad = good;
  bad.tokens[1] = std::string(5000, 'x');
  EXPECT_THAT(ToTokenizerFiles(bad), StatusIs(kInvalid, HasSubstr("token 1")));
  bad = good;
  bad.merges = {"a a"};
  EXPECT_THAT(ToTokenizerFiles(bad), StatusIs(kInvalid, HasSubstr("merge 0")));
  bad.merges = {"ab"};
  EXPECT_THAT(ToTokenizerFiles(bad), StatusIs(kInvalid, HasSubstr("merge 0")));
  bad = good;
  bad.eos_id = 3;
  EXPECT_THAT(ToTokenizerFiles(bad), StatusIs(kInvalid, HasSubstr("eos")));
  bad = good;
  bad.add_bos = true;
  EXPECT_THAT(ToTokenizerFiles(bad), StatusIs(kInvalid, HasSubstr("BOS")));
  bad = good;
  bad.token_types = {TokenType::kNormal};
  EXPECT_THAT(ToTokenizerFiles(bad), StatusIs(kInvalid, HasSubstr("token types")));
  bad = good;
  bad.kind = TokenizerDefinition::Kind::kSentencePieceBpe;
  EXPECT_THAT(ToTokenizerFiles(bad), StatusIs(kInvalid, HasSubstr("scores")));
  bad.scores = {0, std::nanf(""), 0};
  EXPECT_THAT(ToTokenizerFiles(bad), StatusIs(kInvalid, HasSubstr("score 1")));
  bad = good;
  bad.pre_tokenizer = "tekken";
  EXPECT_THAT(ToTokenizerFiles(bad), StatusIs(kUnimplemented, HasSubstr("tekken")));
  bad.pre_tokenizer = "";
  EXPECT_THAT(ToTokenizerFiles(bad), StatusIs(kUnimplemented, HasSubstr("tokenizer.ggml.pre")));
}

TEST(TokenizerDefinitionTest, BosAndEosAreAddedWhereTheFileSaysSo) {
  TokenizerDefinition definition;
  definition.kind = TokenizerDefinition::Kind::kSentencePieceBpe;
  definition.tokens = {"<s>",
                       "</s>",
                       "\xE2\x96\x81",
                       "a",
                       "\xE2\x96\x81"
                       "a",
                       "\"\\"};
  definition.token_types = {TokenType::kControl, TokenType::kControl, TokenType::kNormal,
                            TokenType::kNormal,  TokenType::kNormal,  TokenType::kUserDefined};
  definition.scores = {0, 0, -3, -2, -1, 0};
  definition.bos_id = 0;
  definition.eos_id = 1;
  definition.add_bos = true;
  definition.add_eos = true;
  auto tokenizer = Tokenizer::FromDefinition(definition);
  QST_ASSERT_OK(tokenizer);
  EXPECT_THAT(*(*tokenizer)->Encode("a\"\\a", true), ElementsAre(0, 4, 5, 4, 1));
  EXPECT_THAT(*(*tokenizer)->Encode("a", false), ElementsAre(4));
  EXPECT_EQ((*tokenizer)->Decode({0, 4, 5, 4, 1}, true), "a\"\\ a");
  definition.add_space_prefix = false;
  tokenizer = Tokenizer::FromDefinition(definition);
  QST_ASSERT_OK(tokenizer);
  EXPECT_THAT(*(*tokenizer)->Encode("a a", false), ElementsAre(3, 4));
  EXPECT_EQ((*tokenizer)->Decode({4, 4}, false), " a a");
}

}  // namespace
}  // namespace qst
