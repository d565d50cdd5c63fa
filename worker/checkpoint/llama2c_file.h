// llama2.c checkpoints seen as a Hugging Face model: the "legacy" layout of float32 weights, and the tokenizer file
// that lies beside it. Numbers are little endian.
//
//   weights     7 x int32   dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len. A negative vocab_size
//                           says that the LM head has weights of its own.
//               float32     token embedding; then of all layers one after another: attention norms, q, k, v, o, norms
//                           of the feed-forward part, gate (w1), down (w2), up (w3); last norm; two tables for the
//                           rotary embedding [seq_len, head_dim / 2], not read; the head, if it is not the embedding
//   tokenizer   int32       length of the longest token
//               per token   float32 score, int32 length, so many bytes
#ifndef QST_WORKER_CHECKPOINT_LLAMA2C_FILE_H_
#define QST_WORKER_CHECKPOINT_LLAMA2C_FILE_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "worker/checkpoint/file_io.h"
#include "worker/checkpoint/model_config.h"
#include "worker/checkpoint/tensor_source.h"
#include "worker/text/tokenizer_definition.h"

namespace qst {

// Whether a file of `file_bytes` that begins with `start` is a llama2.c checkpoint: the header is plausible, and the
// tensors that it speaks of fill the file exactly. Also true of the newer layouts, which Llama2cFile::Open refuses by
// name. At least kLlama2cHeaderBytes of `start` are looked at.
bool IsLlama2c(absl::string_view start, std::uint64_t file_bytes);
inline constexpr std::size_t kLlama2cHeaderBytes = 28;

class Llama2cFile : public TensorSource {
 public:
  // kNotFound, kPermissionDenied: cannot be opened. kDataLoss: of another size than its header says.
  // kInvalidArgument: a header that is out of range. kUnimplemented: the newer layouts (version 1 and 2).
  static absl::StatusOr<std::unique_ptr<Llama2cFile>> Open(const std::string& path);
  // The same over bytes in memory, which must outlive the reader. `name` stands for the path in messages.
  static absl::StatusOr<std::unique_ptr<Llama2cFile>> FromMemory(const std::uint8_t* data, std::uint64_t size,
                                                                 const std::string& name);

  const ModelConfig& config() const { return config_; }
  std::uint64_t file_bytes() const { return size_; }

  const std::vector<std::string>& names() const override { return names_; }
  const TensorInfo* Find(absl::string_view name) const override;
  absl::Status ReadFloat(absl::string_view name, std::int64_t first, std::int64_t count, float* out) const override;
  void Release(absl::string_view name) const override;

 private:
  struct Entry {
    TensorInfo info;
    std::uint64_t offset = 0;  // bytes, in the file
    // As in GGUF (gguf_model.h): rows of each head of query and key projections are interleaved in the file.
    bool is_interleaved = false;
  };

  Llama2cFile() = default;
  absl::Status Parse();
  void MapTensors(bool has_head);

  std::string path_;
  std::unique_ptr<MappedFile> file_;
  const std::uint8_t* data_ = nullptr;
  std::uint64_t size_ = 0;
  ModelConfig config_;
  std::vector<std::string> names_;
  std::map<std::string, Entry, std::less<>> entries_;
};

// The contents of a llama2.c tokenizer file. `where` names it in messages. Its texts have spaces where SentencePiece
// has U+2581; ids 0, 1, 2 are <unk>, <s>, </s>, and encoding puts <s> and a space first, as llama2.c's own code does.
// Errors   kDataLoss: cut short. kInvalidArgument: not vocab_size tokens, absurd lengths, no UTF-8.
absl::StatusOr<TokenizerDefinition> ParseLlama2cTokenizer(absl::string_view contents, std::int64_t vocab_size,
                                                          absl::string_view where);

// The tokenizer beside a checkpoint: tok<vocab_size>.bin, or tokenizer.bin. kNotFound if neither is there.
absl::StatusOr<TokenizerDefinition> ReadLlama2cTokenizer(const std::string& checkpoint_path, std::int64_t vocab_size);

}  // namespace qst

#endif  // QST_WORKER_CHECKPOINT_LLAMA2C_FILE_H_
