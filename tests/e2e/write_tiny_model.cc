// Writes a small random model as a Hugging Face folder: write_tiny_model FOLDER [LAYERS [WIDTH [SEED [KIND]]]].
// KIND: llama (default), opt, or opt-350m (norms that follow, a narrow embedding).
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <system_error>

#include "worker/testing/tiny_model.h"

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: write_tiny_model FOLDER [LAYERS [WIDTH [SEED [KIND]]]]\n");
    return 2;
  }
  const std::string kind = argc > 5 ? argv[5] : "llama";
  if (kind != "llama" && kind != "opt" && kind != "opt-350m") {
    std::fprintf(stderr, "write_tiny_model: no kind '%s'; there are llama, opt, opt-350m\n", kind.c_str());
    return 2;
  }
  const bool is_llama = kind == "llama";
  qst::ModelConfig config = is_llama ? qst::TinyLlamaConfig() : qst::TinyOptConfig(/*post_norm=*/kind == "opt-350m");
  config.num_layers = argc > 2 ? std::atoi(argv[2]) : 5;
  config.hidden_size = argc > 3 ? std::atoi(argv[3]) : 64;
  config.num_heads = config.hidden_size / 8;
  config.num_kv_heads = is_llama ? config.num_heads / 2 : config.num_heads;
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
