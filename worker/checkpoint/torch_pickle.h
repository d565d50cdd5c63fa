// Reads the pickle of a PyTorch checkpoint without running it: a machine that knows plain containers, numbers, strings
// and the few callables of which tensors are made. Whatever else the pickle names is refused by that name, since loading
// it would mean to run code that the file chooses.
//
// Source: the opcodes of pickle protocols 0 to 5 as documented in Python's pickletools; torch.save's use of them.
#ifndef QST_WORKER_CHECKPOINT_TORCH_PICKLE_H_
#define QST_WORKER_CHECKPOINT_TORCH_PICKLE_H_

#include <cstdint>
#include <deque>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace qst {

// A storage that the pickle refers to: its elements lie elsewhere in the file.
struct TorchStorageRef {
  std::string type;               // "FloatStorage", "BFloat16Storage", ...
  std::string key;
  std::int64_t num_elems = 0;
  std::int64_t view_offset = 0;   // elements; legacy files may view a part of a storage
};

struct TorchTensorRef {
  TorchStorageRef storage;
  std::int64_t offset = 0;  // elements from the storage's begin
  std::vector<std::int64_t> shape;
  std::vector<std::int64_t> strides;  // elements
};

// A value of the pickle. Containers refer to values of the same TorchPickle.
struct TorchValue {
  enum class Kind : std::uint8_t {
    kNone, kBool, kInt, kFloat, kString, kBytes, kTuple, kList, kDict, kGlobal, kStorage, kTensor,
  };
  Kind kind = Kind::kNone;
  std::int64_t number = 0;        // kBool, kInt
  double real = 0.0;              // kFloat
  std::string text;               // kString, kBytes; kGlobal: "module.name"
  std::vector<const TorchValue*> items;  // kTuple, kList; kDict: keys and values by turns
  const TorchStorageRef* storage = nullptr;  // kStorage
  const TorchTensorRef* tensor = nullptr;    // kTensor

  // Of a dictionary; null if there is no such key. The last of equal keys counts, as in Python.
  const TorchValue* Find(absl::string_view key) const;
};

class TorchPickle {
 public:
  // Values refer to each other: moved only.
  TorchPickle(TorchPickle&&) = default;
  TorchPickle& operator=(TorchPickle&&) = default;

  // Reads one pickle from the begin of `bytes`. `where` names it in messages.
  // kInvalidArgument: broken, or asks for a callable that tensors are not made of (named); more than 4 million values.
  // kDataLoss: ends before its end. kUnimplemented: an opcode that checkpoints do not use.
  static absl::StatusOr<TorchPickle> Read(absl::string_view bytes, const std::string& where);

  const TorchValue& root() const { return *root_; }
  // All that it refers to.
  const std::deque<TorchStorageRef>& storages() const { return storages_; }
  std::uint64_t num_bytes() const { return num_bytes_; }  // the pickle's own length

 private:
  friend class TorchUnpickler;
  TorchPickle() = default;
  // Addresses stay; containers may refer to each other in circles.
  std::deque<TorchValue> values_;
  std::deque<TorchStorageRef> storages_;
  std::deque<TorchTensorRef> tensors_;
  const TorchValue* root_ = nullptr;
  std::uint64_t num_bytes_ = 0;
};

}  // namespace qst

#endif  // QST_WORKER_CHECKPOINT_TORCH_PICKLE_H_
