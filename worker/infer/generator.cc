#include "worker/infer/generator.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/ops.h"
#include "proto/support/status_macros.h"
#include "worker/infer/sampler.h"

namespace qst {

Generator::~Generator() { Synchronize(ctx_).IgnoreError(); }

absl::StatusOr<std::string> Generator::Run(const std::vector<std::int32_t>& prompt, const GenerateOptions& options,
                                           const OnToken& on_token) {
  const std::int64_t prompt_tokens = static_cast<std::int64_t>(prompt.size());
  if (prompt.empty()) {
    return absl::InvalidArgumentError("the prompt is empty, and the model has no token to begin a text with");
  }
  if (prompt_tokens >= options.max_tokens) {
    return absl::InvalidArgumentError(absl::StrCat("the prompt has ", prompt_tokens, " tokens; the model takes ",
                                                   options.max_tokens, ", the answer included"));
  }
  const std::int64_t width = lm_head_.cols();
  std::vector<float> logits(static_cast<std::size_t>(lm_head_.rows()));
  const auto logit_bytes = static_cast<std::int64_t>(logits.size() * sizeof(float));
  QST_ASSIGN_OR_RETURN(state_, DeviceMemory::Allocate(ctx_, width * static_cast<std::int64_t>(sizeof(float))));
  QST_ASSIGN_OR_RETURN(logits_, DeviceMemory::Allocate(ctx_, logit_bytes));
  const MatrixView state = Matrix(state_.as<float>(), 1, width);
  Sampler sampler(options.temperature, options.seed);
  std::vector<std::int32_t> input = prompt;
  std::int64_t past = 0;
  for (std::int64_t num_new = 0;; ++num_new) {
    if (num_new >= options.max_new_tokens || past + static_cast<std::int64_t>(input.size()) > options.max_tokens) {
      return std::string("length");
    }
    TokenPass pass;
    pass.id = static_cast<std::uint64_t>(num_new);
    pass.tokens = input;
    pass.offsets = {0, static_cast<std::int32_t>(input.size())};
    pass.uses_kv_cache = true;
    pass.past_tokens = static_cast<std::int32_t>(past);
    QST_RETURN_IF_ERROR(stream_->Submit(std::move(pass), next_state_->first_layer()));
    const auto source = [&](std::int64_t layer) { return stream_->Wait(static_cast<std::uint64_t>(num_new), layer); };
    QST_RETURN_IF_ERROR(next_state_->Compute(ctx_, static_cast<std::int64_t>(input.size()), source, state));
    stream_->Release(static_cast<std::uint64_t>(num_new));
    QST_RETURN_IF_ERROR(Linear(ctx_, state, lm_head_, /*bias=*/{}, Matrix(logits_.as<float>(), 1, lm_head_.rows()),
                               /*accumulate=*/false));
    QST_RETURN_IF_ERROR(Download(ctx_, logits_.data(), logit_bytes, logits.data()));
    const std::int32_t token = sampler.Next(logits.data(), lm_head_.rows());
    if (std::find(options.stop_ids.begin(), options.stop_ids.end(), token) != options.stop_ids.end()) {
      return std::string("stop");
    }
    QST_RETURN_IF_ERROR(on_token(token));
    past += static_cast<std::int64_t>(input.size());
    input.assign(1, token);
  }
}

}  // namespace qst
