// The random numbers of the project: the same on every platform and standard library, and seekable, because each
// use has a stream of its own, named by a string (a tensor's name, "epoch 3"), that no other use can shift.
#ifndef QST_WORKER_SIDE_RANDOM_H_
#define QST_WORKER_SIDE_RANDOM_H_

#include <cstdint>

#include "absl/strings/string_view.h"

namespace qst {

// A counter that grows by the golden ratio's 64-bit fraction, put through a finaliser of two multiplications and
// three shifts (SplitMix64: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014).
class Random {
 public:
  // The start of the counter mixes the seed with an FNV-1a hash of the stream's name.
  Random(std::uint64_t seed, absl::string_view stream) {
    std::uint64_t hash = 0xcbf29ce484222325ull;
    for (const char c : stream) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3ull;
    state_ = Finalise(seed + kStep) ^ hash;
  }

  std::uint64_t Next() {
    state_ += kStep;
    return Finalise(state_);
  }
  // Uniform in [-bound, bound), in steps of bound * 2^-23: 24 random bits, exact in float.
  float Symmetric(float bound) {
    const auto bits = static_cast<std::int32_t>(Next() >> 40);
    return static_cast<float>(bits - (1 << 23)) * (1.0f / (1 << 23)) * bound;
  }

 private:
  static constexpr std::uint64_t kStep = 0x9e3779b97f4a7c15ull;
  static std::uint64_t Finalise(std::uint64_t z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
  }

  std::uint64_t state_;
};

}  // namespace qst

#endif  // QST_WORKER_SIDE_RANDOM_H_
