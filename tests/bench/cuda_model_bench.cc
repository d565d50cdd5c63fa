// Whole models of published shapes on one GPU, with random weights: how fast the frozen backbone runs by itself, how
// fast a side network is trained from it (stage and side network each with a stream, hidden states handed over in
// process, as a worker that hosts both does it), and what memory it takes. Prints lines of JSON:
//
//   backbone forward     value: tokens/s; ratio: FLOP/s of its linear layers and attention by a plain bf16 product
//   side network alone   value: tokens/s of forward, backward and optimizer on hidden states that are there
//   training             value: tokens/s; ratio: by the forward rate of the same run. With --variants also launch by
//                        launch instead of CUDA graphs, and in float32 instead of TF32
//   peak memory          value: GB (1e9) of the device's arena, weights, head and optimizer included
//   replayed             value: share of the side network's units of work that a graph did, in %
//
//   bazel run --config=cuda //tests/bench:cuda_model_bench -- [--shapes=llama-2-7b,llama-2-70b] [--folder=DIR]
//
// Exit status 1 without a GPU, or in a build without the backend.
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/ops.h"
#include "proto/support/status_macros.h"
#include "tests/bench/cuda_timing.h"
#include "tests/bench/device_matrix.h"
#include "tests/bench/model_bench.h"
#include "worker/checkpoint/stored_model.h"
#include "worker/testing/synthetic_store.h"

ABSL_FLAG(std::vector<std::string>, shapes, std::vector<std::string>({"llama-2-7b", "llama-2-70b"}), "models");
ABSL_FLAG(std::string, folder, "", "where models are made for the time of the run; a new temporary folder if empty");
ABSL_FLAG(std::int64_t, product, 8192, "size of the plain product; 0: none");
ABSL_FLAG(std::vector<std::string>, parts, std::vector<std::string>({"forward", "side", "training"}),
          "what is measured at the settings for speed");
ABSL_FLAG(bool, variants, true, "training again without graphs, and without TF32, at the first two settings");
ABSL_FLAG(int, settings, 99, "how many of a shape's settings are measured");

namespace qst {
namespace {

// TFLOP/s of a plain bf16 product; 0 if it is not wanted.
absl::StatusOr<double> PlainProduct() {
  const std::int64_t n = absl::GetFlag(FLAGS_product);
  if (n == 0) return 0.0;
  QST_ASSIGN_OR_RETURN(const std::unique_ptr<CudaTimer> timer, CudaTimer::Open());
  const OpContext& ctx = timer->context();
  QST_ASSIGN_OR_RETURN(const DeviceMatrix x, DeviceMatrix::Create(ctx, n, n, DType::kBF16));
  QST_ASSIGN_OR_RETURN(const DeviceMatrix w, DeviceMatrix::Create(ctx, n, n, DType::kBF16));
  QST_ASSIGN_OR_RETURN(const DeviceMatrix y, DeviceMatrix::Create(ctx, n, n, DType::kBF16));
  const WeightView weight = WeightView::Dense(w.view());
  QST_ASSIGN_OR_RETURN(const double milliseconds, timer->Milliseconds([&] {
    return Linear(ctx, x.view(), weight, ConstMatrixView(), y.view(), /*accumulate=*/false);
  }));
  const double speed = 2.0 * std::pow(static_cast<double>(n), 3) / (milliseconds * 1e9);
  std::cout << JsonLine("bf16 product", absl::StrCat(n, " cubed, ", timer->device_name()), speed, "TFLOP/s", 1.0)
            << std::endl;
  return speed;
}

absl::Status RunShape(const std::string& shape, const std::string& folder, double ceiling) {
  QST_ASSIGN_OR_RETURN(const ModelConfig config, PublishedShape(shape));
  const bool is_large = shape == "llama-2-70b";
  const std::string path = absl::StrCat(folder, "/", shape);
  std::filesystem::create_directories(path);
  QST_RETURN_IF_ERROR(WriteSyntheticStore(config, StoreQuantization(),
                                          is_large ? SyntheticWeights::kHoles : SyntheticWeights::kRandom, path));
  const std::vector<std::string> wanted = absl::GetFlag(FLAGS_parts);
  const auto has = [&](const char* part) { return std::count(wanted.begin(), wanted.end(), part) > 0; };
  const BenchParts all{has("forward"), has("side"), has("training"), absl::GetFlag(FLAGS_variants)};
  const BenchParts some{has("forward"), has("side"), has("training"), false};
  const BenchParts memory{false, false, has("training"), false};
  // As large as the GPU likes; a job's defaults; little memory; the batch whose memory the paper gives.
  std::vector<std::pair<BenchSetting, BenchParts>> settings = {
      {{16, 512, 16, 16, 6}, all}, {{16, 512, 8, 4, 6}, all}, {{16, 512, 2, 2, 6}, some}, {{4, 384, 2, 1, 2}, memory}};
  if (is_large) settings = {{{1, 384, 1, 1, 2}, memory}, {{4, 384, 2, 1, 2}, memory}};
  if (shape == "tiny") settings = {{{4, 40, 2, 2, 2}, all}};
  settings.resize(std::min<std::size_t>(settings.size(), absl::GetFlag(FLAGS_settings)));
  for (const auto& [setting, parts] : settings) {
    QST_ASSIGN_OR_RETURN(std::unique_ptr<StoredModel> model, StoredModel::Open(path));
    QST_RETURN_IF_ERROR(ModelBench(shape, std::move(model), ceiling).Run(setting, parts));
  }
  std::filesystem::remove_all(path);
  return absl::OkStatus();
}

absl::Status RunAll() {
  QST_ASSIGN_OR_RETURN(const double ceiling, PlainProduct());
  std::string folder = absl::GetFlag(FLAGS_folder);
  const bool is_temporary = folder.empty();
  if (is_temporary) {
    folder = (std::filesystem::temp_directory_path() / absl::StrCat("qst-model-bench-", ::getpid())).string();
  }
  absl::Status status;
  for (const std::string& shape : absl::GetFlag(FLAGS_shapes)) {
    status = RunShape(shape, folder, ceiling);
    if (!status.ok()) break;
  }
  std::error_code ignored;
  if (is_temporary) std::filesystem::remove_all(folder, ignored);
  return status;
}

}  // namespace
}  // namespace qst

int main(int argc, char** argv) {
  absl::ParseCommandLine(argc, argv);
  const absl::Status status = qst::RunAll();
  if (status.ok()) return 0;
  std::cerr << "cuda_model_bench: " << status.message() << "\n";
  return 1;
}
