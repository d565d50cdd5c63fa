// Turning tokens back into text: the member "decoder" of a tokenizer.json.
#ifndef QST_WORKER_TEXT_DECODER_H_
#define QST_WORKER_TEXT_DECODER_H_

#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"
#include "worker/text/normalizer.h"

namespace qst {

class Decoder {
 public:
  // Supports null, ByteLevel, ByteFallback, Fuse, Strip, Replace, Metaspace and Sequence.
  // Errors  kUnimplemented: another type; it is named. kInvalidArgument: malformed.
  static absl::StatusOr<Decoder> FromJson(const nlohmann::json* component);

  // The text, valid UTF-8: bytes that are no text become U+FFFD.
  // Errors  kResourceExhausted: see Regex.
  absl::StatusOr<std::string> Apply(std::vector<std::string> tokens) const;

 private:
  struct ByteLevel {};
  struct ByteFallback {};
  struct Fuse {};
  struct Strip {
    std::string content;  // one character
    int64_t start = 0;
    int64_t stop = 0;
  };
  struct Metaspace {
    std::string replacement;
    bool drops_first = true;
  };
  using Step = std::variant<ByteLevel, ByteFallback, Fuse, Strip, Metaspace, ReplaceStep>;

  absl::Status Append(const nlohmann::json& component, int depth);
  static absl::StatusOr<std::vector<std::string>> ApplyStep(const Step& step, std::vector<std::string> tokens);

  std::vector<Step> steps_;
  bool is_null_ = true;
};

}  // namespace qst

#endif  // QST_WORKER_TEXT_DECODER_H_
