// What training a side network takes of a device's memory, worked out before anything is allocated.
#ifndef QST_WORKER_SIDE_SIDE_MEMORY_H_
#define QST_WORKER_SIDE_SIDE_MEMORY_H_

#include <cstdint>

#include "kernels/device.h"
#include "worker/side/side_config.h"

namespace qst {

// Bytes; hidden states and the frozen head are not counted.
struct SideMemory {
  std::int64_t parameter_bytes = 0;   // values and gradients
  std::int64_t optimizer_bytes = 0;   // both moments
  std::int64_t activation_bytes = 0;  // kept for backward, the head's and backward's own
  std::int64_t workspace_bytes = 0;   // of the ops themselves, in the context's stream; 0 on CPU
  std::int64_t total_bytes() const { return parameter_bytes + optimizer_bytes + activation_bytes + workspace_bytes; }
};
// With micro-batches of at most num_tokens tokens, each of which may have a target; hidden states and frozen head in
// bf16.
SideMemory EstimateSideMemory(const SideNetworkConfig& config, DeviceType device, std::int64_t num_tokens);

// What a training micro-batch takes from the arena.
std::int64_t SideActivationFloats(const SideNetworkConfig& config, DeviceType device, std::int64_t num_tokens,
                                  std::int64_t num_targets);

}  // namespace qst

#endif  // QST_WORKER_SIDE_SIDE_MEMORY_H_
