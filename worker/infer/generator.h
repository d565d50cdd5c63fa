// Continues a prompt, token by token, over a stream of hidden states.
#ifndef QST_WORKER_INFER_GENERATOR_H_
#define QST_WORKER_INFER_GENERATOR_H_

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/device.h"
#include "kernels/device_memory.h"
#include "worker/infer/next_state.h"
#include "worker/stream/hidden_state_stream.h"

namespace qst {

struct GenerateOptions {
  std::int64_t max_new_tokens = 128;
  double temperature = 0.0;  // 0: greedy
  std::uint64_t seed = 0;
  std::vector<std::int32_t> stop_ids;
  // Tokens that model and stream can hold, prompt included.
  std::int64_t max_tokens = 0;
};

// Passes go through the stages' KV caches: the prompt in one pass, then one token at a time.
class Generator {
 public:
  // All must outlive the generator. lm_head [V, d]; it and the stream's states lie in the memory of ctx's device.
  Generator(HiddenStateStream* stream, NextState* next_state, const WeightView& lm_head, const OpContext& ctx)
      : stream_(stream), next_state_(next_state), lm_head_(lm_head), ctx_(ctx) {}
  // Waits for enqueued work.
  ~Generator();
  Generator(const Generator&) = delete;
  Generator& operator=(const Generator&) = delete;

  // Called with each token, but not with the one that stops; an error ends the generation.
  using OnToken = std::function<absl::Status(std::int32_t token)>;

  // "stop" (a stop token came) or "length". May be called once. kInvalidArgument: empty prompt, or one that leaves no
  // room. kCancelled after the stream was aborted so. kResourceExhausted: no memory for the logits.
  absl::StatusOr<std::string> Run(const std::vector<std::int32_t>& prompt, const GenerateOptions& options,
                                  const OnToken& on_token);

 private:
  HiddenStateStream* const stream_;
  NextState* const next_state_;
  const WeightView lm_head_;
  const OpContext ctx_;
  DeviceMemory state_;   // [1, d]
  DeviceMemory logits_;  // [1, V]
};

}  // namespace qst

#endif  // QST_WORKER_INFER_GENERATOR_H_
