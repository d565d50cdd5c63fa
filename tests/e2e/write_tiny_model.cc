// Writes a small random LLaMA model as a Hugging Face folder: write_tiny_model FOLDER [LAYERS [WIDTH [SEED]]].
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <system_error>

#include "worker/testing/tiny_model.h"

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: write_tiny_model FOLDER [LAYERS [WIDTH [SEED]]]\n");
    return 2;
  }
  qst::ModelConfig config = qst::TinyLlamaConfig();
  config.num_layers = argc > 2 ? std::atoi(argv[2]) : 5;
  config.hidden_size = argc > 3 ? std::atoi(argv[3]) : 64;
  config.num_heads = config.hidden_size / 8;
  config.num_kv_heads = config.num_heads / 2;
  config.intermediate_size = config.hidden_size * 5 / 2;
  config.max_position_embeddings = 512;
  std::error_code error;
  std::filesystem::create_directories(argv[1], error);
  const absl::Status status =
      qst::WriteTinyModel(qst::MakeTinyModel(config, argc > 4 ? std::atoi(argv[4]) : 1), argv[1]);
  if (!status.ok()) {
    std::fprintf(stderr, "write_tiny_model: %s\n", status.ToString().c_str());
    return 1;
  }
  return 0;
}
