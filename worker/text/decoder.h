// Turning tokens back into text: the member "decoder" of a tokenizer.json.
#ifndef QST_WORKER_TEXT_DECODER_H_
#define QST_WORKER_TEXT_DECODER_H_

#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "nlohmann/json.hpp"
#include "worker/text/normalizer.h"

namespace qst {

class Decoder {
 public:
  // Supports null, ByteLevel, ByteFallback, Fuse, Strip, Replace, Metaspace and Sequence.
  // Errors  kUnimplemented: another type; it is named. kInvalidArgument: malformed.
  static absl::StatusOr<Decoder> FromJson(const nlohmann::json* component);

  // Decodes token by token. The pieces of text, joined, do not depend on when they are asked for: each is what no
  // later token can change. They are whole characters; bytes that are no text become U+FFFD.
  class Stream {
   public:
    // `decoder` must outlive it.
    explicit Stream(const Decoder* decoder);

    // Appends to `text` what is settled with this token. Errors  kResourceExhausted: see Regex.
    absl::Status Add(absl::string_view token, std::string* text);
    // Appends the rest. The stream is used up.
    absl::Status Finish(std::string* text);

   private:
    struct State {
      bool is_first = true;
      int64_t num_stripped = 0;
      std::string held;
    };
    absl::Status Push(size_t step, std::string token, std::string* text);

    const Decoder* const decoder_;
    std::vector<State> states_;  // one a step, and one for the end
  };

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
  void ChooseStreaming();

  std::vector<Step> steps_;
  // From this step on, a stream's pieces are parts of one token: a step before has joined them all.
  size_t first_in_parts_ = 0;
  bool is_null_ = true;
};

}  // namespace qst

#endif  // QST_WORKER_TEXT_DECODER_H_
