// The LLaMA forward pass written straight from its equations, in float64, one token at a time: the oracle for stages.
#ifndef QST_WORKER_TESTING_REFERENCE_LLAMA_H_
#define QST_WORKER_TESTING_REFERENCE_LLAMA_H_

#include <cstdint>
#include <vector>

#include "worker/testing/tiny_model.h"

namespace qst {

// Hidden states h_f[0] ... h_f[N] of one sequence; states[layer][token * d + channel].
std::vector<std::vector<double>> ReferenceHiddenStates(const TinyModel& model, const std::vector<std::int32_t>& tokens);

}  // namespace qst

#endif  // QST_WORKER_TESTING_REFERENCE_LLAMA_H_
