// Tokenizes texts, for comparison with other tokenizers (tests/oracle/tokenizer_compare.py):
//   tokenize_texts MODEL_FOLDER < texts > tokens
// A text is its size in bytes (uint32, little-endian) and any bytes. For each, the output has the number of tokens
// (uint32), their ids with special tokens added (int32), the size of the decoded text without special tokens (uint32)
// and that text.
#include <cstdint>
#include <iostream>
#include <string>

#include "worker/text/tokenizer.h"

namespace {

void WriteNumber(uint32_t value) { std::cout.write(reinterpret_cast<const char*>(&value), sizeof(value)); }

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "usage: tokenize_texts MODEL_FOLDER < texts > tokens\n";
    return 2;
  }
  const auto tokenizer = qst::Tokenizer::FromModelFolder(argv[1]);
  if (!tokenizer.ok()) {
    std::cerr << tokenizer.status().message() << "\n";
    return 1;
  }
  std::ios::sync_with_stdio(false);
  std::string text;
  uint32_t size = 0;
  for (int number = 1; std::cin.read(reinterpret_cast<char*>(&size), sizeof(size)); ++number) {
    text.resize(size);
    if (!std::cin.read(text.data(), size)) {
      std::cerr << "text " << number << " is cut short\n";
      return 1;
    }
    const auto ids = (*tokenizer)->Encode(text, true);
    if (!ids.ok()) {
      std::cerr << "text " << number << ": " << ids.status().message() << "\n";
      return 1;
    }
    WriteNumber(static_cast<uint32_t>(ids->size()));
    std::cout.write(reinterpret_cast<const char*>(ids->data()), static_cast<std::streamsize>(ids->size() * 4));
    const std::string decoded = (*tokenizer)->Decode(*ids, true);
    WriteNumber(static_cast<uint32_t>(decoded.size()));
    std::cout.write(decoded.data(), static_cast<std::streamsize>(decoded.size()));
  }
  std::cout.flush();
  return std::cout ? 0 : 1;
}
