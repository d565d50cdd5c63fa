// Runs a fuzz target over the files named on the command line, without libFuzzer: each file whole, and cut at
// up to 200 places, since truncation is what happens to files most often.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace {

// From memory of exactly this size, so that sanitizers see any step past its end.
void RunOn(const std::string& contents, std::size_t size) {
  const std::unique_ptr<std::uint8_t[]> copy(new std::uint8_t[size]);
  std::copy_n(contents.data(), size, copy.get());
  LLVMFuzzerTestOneInput(copy.get(), size);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "no corpus files given\n");
    return EXIT_FAILURE;
  }
  for (int i = 1; i < argc; ++i) {
    std::ifstream file(argv[i], std::ios::binary);
    if (!file) {
      std::fprintf(stderr, "cannot read %s\n", argv[i]);
      return EXIT_FAILURE;
    }
    const std::string contents(std::istreambuf_iterator<char>(file), {});
    const std::size_t step = std::max<std::size_t>(1, contents.size() / 200);
    RunOn(contents, contents.size());
    for (std::size_t size = 0; size < contents.size(); size += step) RunOn(contents, size);
  }
  std::printf("%d corpus files\n", argc - 1);
  return EXIT_SUCCESS;
}
