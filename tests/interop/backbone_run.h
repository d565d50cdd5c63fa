// Testonly: what the backbone of a stored model computes on the CPU, from tokens to logits.
#ifndef QST_TESTS_INTEROP_BACKBONE_RUN_H_
#define QST_TESTS_INTEROP_BACKBONE_RUN_H_

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/checkpoint/stored_model.h"

namespace qst {

struct BackboneRun {
  std::vector<float> hidden_states;  // h_f[0] ... h_f[N], [N + 1, T, d]
  std::vector<float> logits;         // [T, V]
};

// One sequence through one stage of all layers. Errors as Stage::Create and Forward.
absl::StatusOr<BackboneRun> RunBackbone(const StoredModel& model, const std::vector<std::int32_t>& tokens);

}  // namespace qst

#endif  // QST_TESTS_INTEROP_BACKBONE_RUN_H_
