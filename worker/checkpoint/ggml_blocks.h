// The element formats of GGUF files and their conversion to float32, exactly as ggml defines it: the same
// float32 operations in the same order, so that results agree bit for bit.
#ifndef QST_WORKER_CHECKPOINT_GGML_BLOCKS_H_
#define QST_WORKER_CHECKPOINT_GGML_BLOCKS_H_

#include <cstdint>
#include <string>

namespace qst {

// Numbers as stored in files.
enum class GgmlType : std::uint32_t {
  kF32 = 0,
  kF16 = 1,
  kQ4_0 = 2,
  kQ4_1 = 3,
  kQ5_0 = 6,
  kQ5_1 = 7,
  kQ8_0 = 8,
  kQ4_K = 12,
  kQ5_K = 13,
  kQ6_K = 14,
  kBF16 = 30,
};

struct GgmlTypeTraits {
  GgmlType type;
  const char* name;
  int block_elems;  // elements of one block, 1 for plain floats
  int block_bytes;
};

// Null for a number that is no supported type.
const GgmlTypeTraits* FindGgmlType(std::uint32_t type);
// The name of any type that ggml has, supported or not; "type 99" for numbers that it has not.
std::string GgmlTypeName(std::uint32_t type);
// "F32, F16, ...", for messages.
std::string SupportedGgmlTypes();

// Converts num_blocks blocks (block_bytes each, any alignment) to num_blocks * block_elems floats.
void DequantizeGgmlBlocks(GgmlType type, const std::uint8_t* blocks, std::int64_t num_blocks, float* out);

}  // namespace qst

#endif  // QST_WORKER_CHECKPOINT_GGML_BLOCKS_H_
