// Prints the token ids of texts, one text a line, for comparison with other tokenizers:
//   tokenize_lines MODEL_FOLDER < texts.jsonl > ids.txt
// Each input line is a JSON string. Each output line has the ids with special tokens added, a tab, and
// the decoded text without special tokens as a JSON string.
#include <iostream>
#include <string>

#include "absl/strings/str_join.h"
#include "worker/text/json_util.h"
#include "worker/text/tokenizer.h"

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "usage: tokenize_lines MODEL_FOLDER < texts.jsonl\n";
    return 2;
  }
  const auto tokenizer = qst::Tokenizer::FromModelFolder(argv[1]);
  if (!tokenizer.ok()) {
    std::cerr << tokenizer.status().message() << "\n";
    return 1;
  }
  std::string line;
  for (int number = 1; std::getline(std::cin, line); ++number) {
    const auto text = qst::ParseJson(line);
    if (!text.ok() || !text->is_string()) {
      std::cerr << "line " << number << ": not a JSON string\n";
      return 1;
    }
    const auto ids = (*tokenizer)->Encode(text->get_ref<const std::string&>(), true);
    if (!ids.ok()) {
      std::cerr << "line " << number << ": " << ids.status().message() << "\n";
      return 1;
    }
    std::cout << absl::StrJoin(*ids, " ") << "\t" << qst::ToJsonString((*tokenizer)->Decode(*ids, true)) << "\n";
  }
  return 0;
}
