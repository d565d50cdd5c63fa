#include "tests/interop/backbone_run.h"

#include <memory>
#include <vector>

#include "kernels/device.h"
#include "kernels/ops.h"
#include "proto/support/status_macros.h"
#include "worker/backbone/stage.h"
#include "worker/host_frozen.h"
#include "worker/side/head.h"

namespace qst {
namespace {

MatrixView View(std::vector<float>* values, std::int64_t rows, std::int64_t cols) {
  MatrixView view;
  view.data = values->data();
  view.dtype = DType::kF32;
  view.rows = rows;
  view.cols = cols;
  view.ld = cols;
  return view;
}

}  // namespace

absl::StatusOr<BackboneRun> RunBackbone(const StoredModel& model, const std::vector<std::int32_t>& tokens) {
  ThreadPool threads(1);
  OpContext ctx;
  ctx.threads = &threads;
  QST_ASSIGN_OR_RETURN(ctx.isa, ResolveIsa(CpuIsa::kAuto));
  const std::int64_t d = model.config().hidden_size;
  const auto num_tokens = static_cast<std::int64_t>(tokens.size());
  StageOptions options;
  options.num_layers = model.config().num_layers;
  QST_ASSIGN_OR_RETURN(const std::unique_ptr<Stage> stage, Stage::Create(model, options, ctx));
  TokenPass pass;
  pass.tokens = tokens;
  pass.offsets = {0, static_cast<std::int32_t>(num_tokens)};
  std::vector<float> residual(static_cast<std::size_t>(num_tokens * d));
  BackboneRun run;
  QST_RETURN_IF_ERROR(stage->Forward(pass, View(&residual, num_tokens, d), [&](std::int64_t, const ConstMatrixView& h) {
    for (std::int64_t row = 0; row < h.rows; ++row) {
      const float* values = h.row<float>(row);
      run.hidden_states.insert(run.hidden_states.end(), values, values + h.cols);
    }
    return absl::OkStatus();
  }));
  QST_ASSIGN_OR_RETURN(const std::unique_ptr<FrozenWeights> frozen,
                       FrozenWeights::Load(ctx, model, /*needs_lm_head=*/true));
  const WeightView& head = frozen->head().lm_head;
  std::vector<float> output(static_cast<std::size_t>(num_tokens * head.cols()));
  QST_RETURN_IF_ERROR(
      BackboneOutput(ctx, frozen->head(), View(&residual, num_tokens, d), View(&output, num_tokens, head.cols())));
  run.logits.resize(static_cast<std::size_t>(num_tokens * head.rows()));
  QST_RETURN_IF_ERROR(Linear(ctx, View(&output, num_tokens, head.cols()), head, {},
                             View(&run.logits, num_tokens, head.rows()), /*accumulate=*/false));
  return run;
}

}  // namespace qst
