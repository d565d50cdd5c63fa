// Imports a model and writes what the backbone computes: for scripts that compare it with other programs.
//
//   backbone_dump SOURCE STORE nf4|fp4|none BLOCK_SIZE OUT.safetensors TOKEN...
//
// SOURCE is imported as STORE (unless that is there), and exported beside it: STORE.bnb as stored, STORE.plain as
// floats. OUT gets hidden_states [N + 1, T, d] and logits [T, V], F32.
#include <sys/stat.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "proto/support/status_macros.h"
#include "tests/interop/backbone_run.h"
#include "worker/checkpoint/export_model.h"
#include "worker/checkpoint/import_model.h"
#include "worker/checkpoint/safetensors_writer.h"

namespace qst {
namespace {

absl::Status Dump(const std::vector<std::string>& args) {
  ImportOptions import;
  import.source = args[0];
  import.destination = args[1];
  if (args[2] == "none") import.quantization.reset();
  if (args[2] == "fp4") import.quantization->type = Quant4Type::kFP4;
  if (import.quantization.has_value()) import.quantization->block_size = std::atoi(args[3].c_str());
  struct stat info;
  if (::stat(args[1].c_str(), &info) != 0) {
    QST_RETURN_IF_ERROR(ImportModel(import, nullptr));
    for (const bool dequantize : {false, true}) {
      ExportOptions options;
      options.model = args[1];
      options.destination = args[1] + (dequantize ? ".plain" : ".bnb");
      options.dequantize = dequantize;
      QST_RETURN_IF_ERROR(ExportModel(options, nullptr));
    }
  }
  std::vector<std::int32_t> tokens;
  for (std::size_t i = 5; i < args.size(); ++i) tokens.push_back(std::atoi(args[i].c_str()));
  QST_ASSIGN_OR_RETURN(const auto model, StoredModel::Open(args[1]));
  QST_ASSIGN_OR_RETURN(const BackboneRun run, RunBackbone(*model, tokens));
  const ModelConfig& config = model->config();
  const auto num_tokens = static_cast<std::int64_t>(tokens.size());
  return WriteSafetensors(args[4],
                          {{"hidden_states",
                            DType::kF32,
                            {config.num_layers + 1, num_tokens, config.hidden_size},
                            run.hidden_states.data()},
                           {"logits", DType::kF32, {num_tokens, config.vocab_size}, run.logits.data()}},
                          {});
}

}  // namespace
}  // namespace qst

int main(int argc, char** argv) {
  if (argc < 7) {
    std::fprintf(stderr, "usage: backbone_dump SOURCE STORE nf4|fp4|none BLOCK_SIZE OUT.safetensors TOKEN...\n");
    return 2;
  }
  const absl::Status status = qst::Dump(std::vector<std::string>(argv + 1, argv + argc));
  if (!status.ok()) std::fprintf(stderr, "backbone_dump: %s\n", status.ToString().c_str());
  return status.ok() ? 0 : 1;
}
