#include "worker/text/unicode_text.h"

#include <chrono>
#include <random>
#include <string>

#include "gtest/gtest.h"
#include "worker/text/utf8.h"

namespace qst {
namespace {

TEST(UnicodeTextTest, NormalFormsOfKnownTexts) {
  const struct {
    const char* text;
    const char* nfc;
    const char* nfd;
    const char* nfkc;
    const char* nfkd;
  } kCases[] = {
      {"", "", "", "", ""},
      {"plain", "plain", "plain", "plain", "plain"},
      {"e\u0301", "\u00E9", "e\u0301", "\u00E9", "e\u0301"},
      {"\u00E9", "\u00E9", "e\u0301", "\u00E9", "e\u0301"},
      // Marks in the wrong order, one of them composing.
      {"a\u0301\u0323", "\u1EA1\u0301", "a\u0323\u0301", "\u1EA1\u0301", "a\u0323\u0301"},
      {"\uD55C", "\uD55C", "\u1112\u1161\u11AB", "\uD55C", "\u1112\u1161\u11AB"},
      {"\u1112\u1161\u11AB", "\uD55C", "\u1112\u1161\u11AB", "\uD55C", "\u1112\u1161\u11AB"},
      {"\uFB01x\u00B2", "\uFB01x\u00B2", "\uFB01x\u00B2", "fix2", "fix2"},
      {"\u0344", "\u0308\u0301", "\u0308\u0301", "\u0308\u0301", "\u0308\u0301"},
      {"\u212B\u2126", "\u00C5\u03A9", "A\u030A\u03A9", "\u00C5\u03A9", "A\u030A\u03A9"},
      {"\u3400\u3099\u304B\u3099", "\u3400\u3099\u304C", "\u3400\u3099\u304B\u3099", "\u3400\u3099\u304C",
       "\u3400\u3099\u304B\u3099"},
      // Younger than the library's tables: U+0898 is a mark that it does not order.
      {"a\u0301\u0898\u0323", "\u00E1\u0898\u0323", "a\u0301\u0898\u0323", "\u00E1\u0898\u0323", "a\u0301\u0898\u0323"},
      {"\u32FF", "\u32FF", "\u32FF", "\u32FF", "\u32FF"},
  };
  for (const auto& test : kCases) {
    EXPECT_EQ(ToNormalForm(NormalForm::kNfc, test.text), test.nfc) << test.text;
    EXPECT_EQ(ToNormalForm(NormalForm::kNfd, test.text), test.nfd) << test.text;
    EXPECT_EQ(ToNormalForm(NormalForm::kNfkc, test.text), test.nfkc) << test.text;
    EXPECT_EQ(ToNormalForm(NormalForm::kNfkd, test.text), test.nfkd) << test.text;
  }
  EXPECT_EQ(ToNormalForm(NormalForm::kNfd, std::string("\0e\xCC\x81\0", 5)), std::string("\0e\xCC\x81\0", 5));
}

// Composing takes short cuts where nothing can compose; of decomposed text, few are left to take.
TEST(UnicodeTextTest, ComposingDoesNotDependOnHowFarTextIsComposed) {
  std::mt19937 random(5);
  for (uint32_t c = 1; c < 0x110000; ++c) {
    if (c >= 0xD800 && c < 0xE000) continue;
    if (c > 0x32000 && c % 64 != 0) continue;
    std::string text = "o";
    AppendUtf8(c, &text);
    AppendUtf8(0x300 + random() % 0x50, &text);
    AppendUtf8(c, &text);
    text += "\u3099 \u00E9";
    const std::string composed = ToNormalForm(NormalForm::kNfc, text);
    ASSERT_EQ(composed, ToNormalForm(NormalForm::kNfc, ToNormalForm(NormalForm::kNfd, text))) << "U+" << std::hex << c;
    ASSERT_EQ(composed, ToNormalForm(NormalForm::kNfc, composed)) << "U+" << std::hex << c;
  }
}

TEST(UnicodeTextTest, LongRunsOfMarksTakeLittleTime) {
  std::string text = "a";
  while (text.size() < 2000000) text += text.size() % 4 == 1 ? "\u0301" : "\u0323";
  const auto start = std::chrono::steady_clock::now();
  for (const NormalForm form : {NormalForm::kNfc, NormalForm::kNfd, NormalForm::kNfkc, NormalForm::kNfkd}) {
    EXPECT_GT(ToNormalForm(form, text).size(), 1000000);
  }
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(20));
}

TEST(UnicodeTextTest, LowercaseIsThatOfEachCharacter) {
  EXPECT_EQ(ToLowercase("ABC xyz 1"), "abc xyz 1");
  EXPECT_EQ(ToLowercase("\u0130\u1E9E\u03A3\u00C9"), "i\u0307\u00DF\u03C3\u00E9");
  EXPECT_EQ(ToLowercase("\U00010D50\uA7DC\u1C89"), "\U00010D70\u019B\u1C8A");
  EXPECT_EQ(ToLowercase("\U00016EA6\uA7CE\uA7D2\uA7D4"), "\U00016EC1\uA7CF\uA7D3\uA7D5");
}

TEST(UnicodeTextTest, MarksAreRemovedAndNothingElse) {
  EXPECT_EQ(RemoveMarks("e\u0301\u0323x\u00E9\u0903"), "ex\u00E9");
  EXPECT_EQ(RemoveMarks("\u0898"), "\u0898") << "younger than the library's tables";
}

}  // namespace
}  // namespace qst
