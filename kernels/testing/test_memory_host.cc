// For builds without the CUDA backend.
#include <cstdlib>

#include "kernels/testing/test_memory.h"

namespace qst {

void* AllocateTestBytes(std::size_t num_bytes) { return std::malloc(num_bytes); }
void FreeTestBytes(void* memory) { std::free(memory); }
bool SynchronizeTestDevice() { return true; }

}  // namespace qst
