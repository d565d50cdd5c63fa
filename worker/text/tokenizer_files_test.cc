// Folders without tokenizer.json: what is found in them, what is made of it, what is refused.
#include "worker/text/tokenizer_files.h"

#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/support/status_matchers.h"
#include "worker/text/sentence_piece.pb.h"
#include "worker/text/sentence_piece_file.h"
#include "worker/text/tokenizer.h"

namespace qst {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr absl::StatusCode kInvalid = absl::StatusCode::kInvalidArgument;
constexpr absl::StatusCode kUnimplemented = absl::StatusCode::kUnimplemented;

class TokenizerFilesTest : public testing::Test {
 protected:
  TokenizerFilesTest() : folder_(absl::StrCat(testing::TempDir(), "/tokenizer_files_test.", getpid())) {
    fs::remove_all(folder_);
    fs::create_directories(folder_);
  }
  ~TokenizerFilesTest() override { fs::remove_all(folder_); }

  void Write(const std::string& name, absl::string_view text) {
    std::ofstream(absl::StrCat(folder_, "/", name), std::ios::binary).write(text.data(), text.size());
  }
  void WriteModel() { Write("tokenizer.model", model_.SerializeAsString()); }
  auto Load() { return Tokenizer::FromModelFolder(folder_); }
  std::vector<int32_t> Encode(absl::string_view text) {
    const auto tokenizer = Load();
    QST_EXPECT_OK(tokenizer);
    if (!tokenizer.ok()) return {};
    const auto ids = (*tokenizer)->Encode(text, true);
    QST_EXPECT_OK(ids);
    return ids.value_or(std::vector<int32_t>());
  }

  int AddPiece(const std::string& piece, float score, int type) {
    sentence_piece::Piece* added = model_.add_pieces();
    added->set_piece(piece);
    added->set_score(score);
    added->set_type(type);
    return model_.pieces_size() - 1;
  }
  // Ids: 0 <unk>, 1 <s>, 2 </s>, 3 U+2581, 4 a, 5 b, 6 ab, 7 U+2581 a.
  void MakeModel() {
    AddPiece("<unk>", 0, 2);
    AddPiece("<s>", 0, 3);
    AddPiece("</s>", 0, 3);
    AddPiece("\u2581", -5, 1);
    AddPiece("a", -6, 1);
    AddPiece("b", -7, 1);
    AddPiece("ab", -1, 1);
    AddPiece("\u2581a", -2, 1);
    model_.mutable_trainer()->set_model_type(2);
    model_.mutable_normalizer()->set_remove_extra_whitespaces(false);
  }

  const std::string folder_;
  sentence_piece::Model model_;
};

TEST_F(TokenizerFilesTest, SentencePieceModelIsReadWithItsDefaults) {
  MakeModel();
  WriteModel();
  EXPECT_THAT(Encode("ab a"), ElementsAre(1, 3, 6, 7));
  EXPECT_THAT(Encode("xya"), ElementsAre(1, 3, 0, 4)) << "unknown characters are one token";
  EXPECT_THAT(Encode(""), ElementsAre(1));
  const auto tokenizer = Load();
  QST_ASSERT_OK(tokenizer);
  EXPECT_EQ((*tokenizer)->Decode({1, 3, 6, 7}, true), "ab a");
  EXPECT_EQ((*tokenizer)->bos_id(), 1);
  EXPECT_EQ((*tokenizer)->eos_id(), 2);
  EXPECT_EQ((*tokenizer)->pad_id(), std::nullopt);
}

TEST_F(TokenizerFilesTest, SettingsOfTheFolderCount) {
  MakeModel();
  WriteModel();
  Write("tokenizer_config.json", R"({"add_bos_token": false, "add_eos_token": true, "pad_token": "</s>"})");
  EXPECT_THAT(Encode("a<s>a"), ElementsAre(7, 1, 7, 2));
  EXPECT_EQ((*Load())->pad_id(), 2);
  EXPECT_EQ((*Load())->bos_id(), 1) << "the model's own, which the settings do not name";
  Write("tokenizer_config.json", R"({"legacy": false})");
  EXPECT_THAT(Encode("a<s>a"), ElementsAre(1, 7, 1, 4)) << "no space behind a special token";
  Write("tokenizer_config.json", R"({"add_prefix_space": false})");
  EXPECT_THAT(Encode("a a"), ElementsAre(1, 4, 7));
  Write("tokenizer_config.json", R"({"legacy": 1})");
  EXPECT_THAT(Load(), StatusIs(kInvalid, HasSubstr("tokenizer_config.json: \"legacy\"")));
}

TEST_F(TokenizerFilesTest, TokensAreAddedToTheVocabulary) {
  MakeModel();
  WriteModel();
  Write("added_tokens.json", R"({"<pad>": 9, "<call>": 8})");
  Write("tokenizer_config.json",
        R"({"added_tokens_decoder": {"9": {"content": "<pad>", "special": true}, "10": {"content": "<x>"}}})");
  EXPECT_THAT(Encode("<pad><call><x>"), ElementsAre(1, 9, 8, 10));
  EXPECT_EQ((*Load())->Decode({9, 8, 10}, true), "<call><x>");
  Write("added_tokens.json", R"({"<call>": 12})");
  EXPECT_THAT(Load(), StatusIs(kInvalid, HasSubstr("no token has the id 8")));
  Write("added_tokens.json", R"({"<call>": 4})");
  EXPECT_THAT(Load(), StatusIs(kInvalid, HasSubstr("has the id 4 of the token \"a\"")));
  Write("added_tokens.json", R"({"<call>": "4"})");
  EXPECT_THAT(Load(), StatusIs(kInvalid, HasSubstr("added_tokens.json")));
  Write("added_tokens.json", R"({})");
  Write("tokenizer_config.json", R"({"added_tokens_decoder": {"8": {"content": "<m>", "lstrip": true}}})");
  EXPECT_THAT(Load(), StatusIs(kUnimplemented, HasSubstr("\"lstrip\" of the token \"<m>\"")));
}

TEST_F(TokenizerFilesTest, AmongEqualScoresTheLeftmostPairMergesFirst) {
  MakeModel();
  const int ba = AddPiece("ba", -1, 1);  // as good as "ab", and later in the list
  WriteModel();
  EXPECT_THAT(Encode("aba"), ElementsAre(1, 3, 6, 4));
  EXPECT_THAT(Encode("bab"), ElementsAre(1, 3, ba, 5));
}

TEST_F(TokenizerFilesTest, UserDefinedSymbolsStandInTextThatHasItsSpaces) {
  MakeModel();
  const int user = AddPiece("<u>", 0, 4);
  WriteModel();
  EXPECT_THAT(Encode("<u>a"), ElementsAre(1, 3, user, 4)) << "one space, before all";
  EXPECT_THAT(Encode("a <u> a"), ElementsAre(1, 7, 3, user, 7));
}

TEST_F(TokenizerFilesTest, ExtraSpacesAreRemovedWhereTheModelSaysSo) {
  MakeModel();
  model_.mutable_normalizer()->set_remove_extra_whitespaces(true);
  WriteModel();
  EXPECT_THAT(Encode("  a   a  "), ElementsAre(1, 7, 7));
  EXPECT_THAT(Encode("   "), ElementsAre(1));
  EXPECT_THAT(Encode(" a\u2581 \u2581"), ElementsAre(1, 7)) << "the sign for a space goes at the end, too";
  EXPECT_THAT(Encode("\u2581a"), ElementsAre(1, 3, 7));
}

TEST_F(TokenizerFilesTest, ModelsThatCannotBeFollowedAreRefusedByName) {
  const struct {
    const char* message;
    void (*change)(sentence_piece::Model*);
  } kCases[] = {
      {"unigram", [](sentence_piece::Model* m) { m->mutable_trainer()->set_model_type(1); }},
      {"word model", [](sentence_piece::Model* m) { m->mutable_trainer()->set_model_type(3); }},
      {"character model", [](sentence_piece::Model* m) { m->mutable_trainer()->set_model_type(4); }},
      {"\"nmt_nfkc\"",
       [](sentence_piece::Model* m) {
         m->mutable_normalizer()->set_name("nmt_nfkc");
         m->mutable_normalizer()->set_precompiled_charsmap("x");
       }},
      {"escape_whitespaces", [](sentence_piece::Model* m) { m->mutable_normalizer()->set_escape_whitespaces(false); }},
      {"treat_whitespace_as_suffix",
       [](sentence_piece::Model* m) { m->mutable_trainer()->set_treat_whitespace_as_suffix(true); }},
      {"denormalization", [](sentence_piece::Model* m) { m->mutable_denormalizer()->set_precompiled_charsmap("x"); }},
      {"unused piece (\"b\")", [](sentence_piece::Model* m) { m->mutable_pieces(5)->set_type(5); }},
      {"(\"abc\") with a character", [](sentence_piece::Model* m) { m->mutable_pieces(6)->set_piece("abc"); }},
  };
  MakeModel();
  const sentence_piece::Model good = model_;
  for (const auto& test : kCases) {
    model_ = good;
    test.change(&model_);
    WriteModel();
    EXPECT_THAT(Load(), StatusIs(kUnimplemented, HasSubstr(test.message)));
    EXPECT_THAT(Load(), StatusIs(kUnimplemented, HasSubstr("tokenizer.json"))) << "what to do";
  }
}

TEST_F(TokenizerFilesTest, FilesThatAreNoModelAreRefused) {
  for (const char* text : {"", "IQ== 0\nIg== 1\n", "\x0A\xFF\xFF\xFF\xFF\xFF"}) {
    Write("tokenizer.model", text);
    EXPECT_THAT(Load(), StatusIs(kInvalid, HasSubstr("not a SentencePiece model"))) << text;
  }
  MakeModel();
  const sentence_piece::Model good = model_;
  model_.mutable_pieces(4)->set_type(7);
  EXPECT_THAT(DefinitionFromSentencePiece(model_.SerializeAsString()), StatusIs(kInvalid, HasSubstr("piece 4")));
  model_ = good;
  model_.mutable_pieces(4)->set_piece("");
  EXPECT_THAT(DefinitionFromSentencePiece(model_.SerializeAsString()), StatusIs(kInvalid, HasSubstr("piece 4")));
  model_ = good;
  model_.mutable_pieces(7)->set_piece("\xFF");
  WriteModel();
  EXPECT_THAT(Load(), StatusIs(kInvalid, HasSubstr("token 7 is not UTF-8")));
  model_ = good;
  model_.mutable_trainer()->set_bos_id(1000);
  const auto definition = DefinitionFromSentencePiece(model_.SerializeAsString());
  QST_ASSERT_OK(definition);
  EXPECT_EQ(definition->bos_id, std::nullopt);
}

TEST_F(TokenizerFilesTest, FilesAreTakenInTheOrderOfPreference) {
  for (const auto& [vocab, merges] : {std::pair("gpt2-vocab.json", "gpt2-merges.txt"),
                                      std::pair("encoder.json", "vocab.bpe"), std::pair("vocab.json", "merges.txt")}) {
    // Each has one more token in front than the one before.
    static int first = 0;
    ++first;
    std::string tokens;
    for (int i = 0; i < first; ++i) absl::StrAppend(&tokens, "\"", std::string(i + 1, 'x'), "\": ", i, ", ");
    Write(vocab, absl::StrCat("{", tokens, "\"a\": ", first, "}"));
    Write(merges, "#version: 0.2\n");
    EXPECT_THAT(Encode("a"), ElementsAre(first)) << vocab;
  }
  MakeModel();
  WriteModel();
  EXPECT_THAT(Encode("a"), ElementsAre(1, 7));
  Write("tokenizer.json", R"({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}})");
  EXPECT_THAT(Encode("a"), ElementsAre(0));
}

TEST_F(TokenizerFilesTest, WordsWithoutTokensAreLeftOut) {
  Write("vocab.json", R"({"a": 0})");
  Write("merges.txt", "");
  EXPECT_THAT(Encode("\u00e9"), testing::IsEmpty());
  EXPECT_THAT(Encode("bc bc\u00e9a"), ElementsAre(0));
}

TEST_F(TokenizerFilesTest, TheClassOfTokenizerDecidesAboutWords) {
  Write("vocab.json", R"({"a": 0, "1": 1, "11": 2, "é": 3, "Ã": 4, "©": 5, "Ã©": 6})");
  Write("merges.txt", "1 1\nÃ ©\n");
  EXPECT_THAT(Encode("11e\u0301"), testing::SizeIs(1)) << "the letter and its mark are not in the vocabulary";
  Write("tokenizer_config.json", R"({"tokenizer_class": "Qwen2Tokenizer"})");
  EXPECT_THAT(Encode("11e\u0301"), ElementsAre(1, 1, 6)) << "digits one by one, composed characters";
  Write("tokenizer_config.json", R"({"tokenizer_class": "RobertaTokenizer"})");
  EXPECT_THAT(Load(), StatusIs(kUnimplemented, HasSubstr("RobertaTokenizer")));
  Write("tokenizer_config.json", R"({"add_prefix_space": true})");
  EXPECT_THAT(Load(), StatusIs(kUnimplemented, HasSubstr("add_prefix_space")));
}

}  // namespace
}  // namespace qst
