// Speed of encoding, for tests/bench/peers/tokenizers_peer.py, which runs it side by side with other libraries:
//   tokenizer_bench MODEL_FOLDER TEXTS
// TEXTS is a file of texts: for each, its size in bytes (uint32, little-endian) and the bytes. For each line on
// standard input, all texts are encoded once, one after the other; the seconds of processor time and the number of
// tokens are printed.
#include <time.h>

#include <cstdint>
#include <fstream>
#include <iostream>
#include <string>
#include <vector>

#include "worker/text/tokenizer.h"

namespace {

bool ReadTexts(const char* path, std::vector<std::string>* texts) {
  std::ifstream stream(path, std::ios::binary);
  uint32_t size = 0;
  while (stream.read(reinterpret_cast<char*>(&size), sizeof(size))) {
    std::string text(size, '\0');
    if (!stream.read(text.data(), size)) return false;
    texts->push_back(std::move(text));
  }
  return !texts->empty();
}

// Of this process, so that others on the machine do not count.
double ProcessorSeconds() {
  timespec time;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::cerr << "usage: tokenizer_bench MODEL_FOLDER TEXTS\n";
    return 2;
  }
  const auto tokenizer = qst::Tokenizer::FromModelFolder(argv[1]);
  if (!tokenizer.ok()) {
    std::cerr << tokenizer.status().message() << "\n";
    return 1;
  }
  std::vector<std::string> texts;
  if (!ReadTexts(argv[2], &texts)) {
    std::cerr << argv[2] << ": no file of texts\n";
    return 1;
  }
  for (std::string line; std::getline(std::cin, line);) {
    size_t num_tokens = 0;
    const double start = ProcessorSeconds();
    for (const std::string& text : texts) {
      const auto ids = (*tokenizer)->Encode(text, true);
      if (!ids.ok()) {
        std::cerr << ids.status().message() << "\n";
        return 1;
      }
      num_tokens += ids->size();
    }
    std::cout << ProcessorSeconds() - start << " " << num_tokens << std::endl;
  }
  return 0;
}
