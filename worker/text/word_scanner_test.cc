#include "worker/text/word_scanner.h"

#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "proto/support/status_matchers.h"
#include "worker/text/utf8.h"

namespace qst {
namespace {

class WordScannerTest : public testing::TestWithParam<WordPattern> {
 protected:
  void SetUp() override {
    auto regex = Regex::Compile(WordPatternText(GetParam()));
    QST_ASSERT_OK(regex);
    regex_.emplace(*std::move(regex));
  }

  // The words of the scanner and of the pattern, a bar between them.
  static std::string Show(const std::string& text, const std::vector<TextRange>& words) {
    std::string shown;
    for (const TextRange& word : words) absl::StrAppend(&shown, text.substr(word.begin, word.end - word.begin), "|");
    return shown;
  }
  void ExpectSameWords(const std::string& text) {
    std::vector<TextRange> words;
    AppendWords(GetParam(), text, 0, &words);
    const auto expected = regex_->FindAll(text);
    QST_ASSERT_OK(expected);
    ASSERT_EQ(Show(text, words), Show(text, *expected)) << text;
  }

  std::optional<Regex> regex_;
};

TEST_P(WordScannerTest, EveryCharacterIsOfTheClassThatThePatternSees) {
  for (uint32_t c = 1; c < 0x110000; ++c) {
    if (c >= 0xD800 && c < 0xE000) continue;
    // Unassigned planes and the insides of large blocks are alike.
    if (c > 0x32000 && c < 0xE0000 && c % 64 != 0) continue;
    std::string text = "a";
    AppendUtf8(c, &text);
    text += "b1";
    AppendUtf8(c, &text);
    text += "2.";
    AppendUtf8(c, &text);
    text += ", ";
    AppendUtf8(c, &text);
    ASSERT_NO_FATAL_FAILURE(ExpectSameWords(text)) << "U+" << std::hex << c;
  }
}

TEST_P(WordScannerTest, RandomTextsGiveTheWordsOfThePattern) {
  const std::vector<std::string> parts = {" ",
                                          " ",
                                          "  ",
                                          "\n",
                                          "\r",
                                          "\r\n",
                                          "\t",
                                          "\xC2\xA0",
                                          "\xE2\x80\x83",
                                          "\xE2\x80\xA8",
                                          "\xC2\x85",
                                          "\xE1\xA0\x8E",
                                          "a",
                                          "Z",
                                          "\xC3\xA9",
                                          "\xE5\xAD\x97",
                                          "\xF0\x90\x90\x80",
                                          "\xC5\xBF",
                                          "1",
                                          "\xC2\xBD",
                                          "\xD9\xA3",
                                          "\xF0\x9D\x9F\x98",
                                          "'",
                                          "'",
                                          "s",
                                          "t",
                                          "re",
                                          "ve",
                                          "m",
                                          "ll",
                                          "d",
                                          "S",
                                          "T",
                                          "RE",
                                          "Ve",
                                          "M",
                                          "lL",
                                          "D",
                                          "r",
                                          "l",
                                          ".",
                                          "!?",
                                          "\xCC\x81",
                                          "\xF0\x9F\x99\x82",
                                          "\xE2\x80\x8D",
                                          std::string(1, '\0'),
                                          "\x7F",
                                          "_",
                                          "\xF4\x8F\xBF\xBF"};
  std::mt19937 random(3);
  for (int i = 0; i < 200000; ++i) {
    std::string text;
    const size_t size = 1 + random() % 12;
    for (size_t part = 0; part < size; ++part) text += parts[random() % parts.size()];
    ASSERT_NO_FATAL_FAILURE(ExpectSameWords(text)) << "text " << i;
  }
}

TEST_P(WordScannerTest, NumbersAreWhatThePatternCallsNumbers) {
  std::string text;
  for (uint32_t c = 1; c < 0x110000; ++c) {
    if (c < 0xD800 || c >= 0xE000) AppendUtf8(c, &text);
  }
  std::vector<TextRange> numbers;
  AppendNumbers(text, &numbers);
  const auto pattern = Regex::Compile(R"(\p{N})");
  QST_ASSERT_OK(pattern);
  const auto expected = pattern->FindAll(text);
  QST_ASSERT_OK(expected);
  ASSERT_EQ(numbers.size(), expected->size());
  for (size_t i = 0; i < numbers.size(); ++i) ASSERT_EQ(numbers[i].begin, (*expected)[i].begin);
}

INSTANTIATE_TEST_SUITE_P(Patterns, WordScannerTest,
                         testing::Values(WordPattern::kGpt2, WordPattern::kLlama3, WordPattern::kQwen2));

TEST(WordPatternTest, OnlyThePublishedSpellingsAreFound) {
  EXPECT_EQ(FindWordPattern(WordPatternText(WordPattern::kQwen2)), WordPattern::kQwen2);
  EXPECT_EQ(FindWordPattern(R"(\p{L}+)"), std::nullopt);
}

}  // namespace
}  // namespace qst
