// A whole model of a published shape on one GPU, measured: cuda_model_bench's work.
#ifndef QST_TESTS_BENCH_MODEL_BENCH_H_
#define QST_TESTS_BENCH_MODEL_BENCH_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cuda/device.h"
#include "kernels/ops.h"
#include "worker/backbone/stage.h"
#include "worker/checkpoint/stored_model.h"
#include "worker/side/side_batch.h"
#include "worker/side/side_network.h"
#include "worker/stream/token_pass.h"
#include "worker/stream/transport.h"

namespace qst {

// Sequences of one length; an optimizer step takes num_sequences of them.
struct BenchSetting {
  std::int64_t num_sequences = 0;
  std::int64_t length = 0;
  std::int64_t pass_sequences = 0;   // of a backbone pass (train.backbone_batch_tokens)
  std::int64_t micro_sequences = 0;  // of a micro-batch of the side network (train.micro_batch_tokens)
  int num_steps = 0;                 // that are timed
};

// Which measurements are made.
struct BenchParts {
  bool forward = true;    // the backbone alone
  bool side = true;       // the side network alone, on made-up hidden states
  bool training = true;   // both
  bool variants = false;  // training again without CUDA graphs, and in float32 instead of TF32
};

// Prints lines of JSON (cuda_timing.h).
class ModelBench {
 public:
  // `ceiling`: TFLOP/s of a plain product; 0: not known.
  ModelBench(std::string shape, std::unique_ptr<StoredModel> model, double ceiling)
      : shape_(std::move(shape)), model_(std::move(model)), ceiling_(ceiling) {}

  // On a device of its own, so that the peak is this setting's.
  absl::Status Run(const BenchSetting& setting, const BenchParts& parts);

 private:
  struct Training {
    double rate = 0.0;  // tokens/s
    GraphStats stats;
  };
  struct Variant {
    bool uses_graphs = true;
    bool allow_tf32 = true;
  };

  absl::Status RunOnDevice(const BenchSetting& setting, const BenchParts& parts);
  absl::Status RunTraining(const BenchSetting& setting, const BenchParts& parts, double forward, Stage& stage,
                           const OpContext& stage_ctx);
  absl::StatusOr<double> ForwardRate(const BenchSetting& setting, Stage& stage, const OpContext& ctx);
  absl::StatusOr<double> SideRate(const BenchSetting& setting);
  absl::StatusOr<Training> TrainingRate(const BenchSetting& setting, const Variant& variant, Stage& stage,
                                        const OpContext& stage_ctx);
  absl::StatusOr<Training> Train(const BenchSetting& setting, const Variant& variant, Transport* transport);
  absl::StatusOr<std::unique_ptr<SideNetwork>> MakeNetwork(const OpContext& ctx, const FrozenHead& head,
                                                           const BenchSetting& setting, bool uses_graphs);
  absl::Status OptimizerStep(const OpContext& ctx, std::int64_t step, Parameters& parameters, DeviceMemory* sum);
  void Print(const std::string& name, const BenchSetting& setting, double value, const char* unit, double ratio) const;

  const std::string shape_;
  const std::unique_ptr<StoredModel> model_;
  const double ceiling_;
  std::unique_ptr<cuda::Device> device_;
};

}  // namespace qst

#endif  // QST_TESTS_BENCH_MODEL_BENCH_H_
