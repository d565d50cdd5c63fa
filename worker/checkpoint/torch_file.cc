#include "worker/checkpoint/torch_file.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "kernels/dtype_convert.h"
#include "proto/support/status_macros.h"

namespace qst {
namespace {

// The first pickle of a legacy file is this number (torch.serialization.MAGIC_NUMBER), little-endian.
constexpr unsigned char kLegacyMagic[] = {0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19};
constexpr std::int64_t kLegacyProtocol = 1001;
constexpr std::size_t kMaxTensors = 1 << 20;

struct StorageType {
  const char* name;
  const char* encoding;
  int bytes;
  bool is_plain;  // has a DType
  DType dtype;
};
constexpr StorageType kStorageTypes[] = {
    {"FloatStorage", "F32", 4, true, DType::kF32},   {"HalfStorage", "F16", 2, true, DType::kF16},
    {"BFloat16Storage", "BF16", 2, true, DType::kBF16}, {"DoubleStorage", "F64", 8, false, DType::kF32},
    {"LongStorage", "I64", 8, false, DType::kI32},   {"IntStorage", "I32", 4, true, DType::kI32},
    {"ShortStorage", "I16", 2, false, DType::kI32},  {"CharStorage", "I8", 1, true, DType::kI8},
    {"ByteStorage", "U8", 1, true, DType::kU8},      {"BoolStorage", "BOOL", 1, false, DType::kU8},
};

const StorageType* FindStorageType(const std::string& name) {
  for (const StorageType& type : kStorageTypes) {
    if (name == type.name) return &type;
  }
  return nullptr;
}

int ElementBytes(const std::string& encoding) {
  for (const StorageType& type : kStorageTypes) {
    if (encoding == type.encoding) return type.bytes;
  }
  return 0;
}

std::string Printable(absl::string_view text) { return absl::CHexEscape(text.substr(0, 120)); }

bool HasTensor(const TorchValue& dict) {
  for (std::size_t i = 1; i < dict.items.size(); i += 2) {
    if (dict.items[i]->kind == TorchValue::Kind::kTensor) return true;
  }
  return false;
}

// One element of F32, F16 or BF16 as float32.
float LoadFloat(const std::string& encoding, const std::uint8_t* at) {
  std::uint16_t narrow = 0;
  if (encoding == "F32") {
    float value;
    std::memcpy(&value, at, sizeof(value));
    return value;
  }
  std::memcpy(&narrow, at, sizeof(narrow));
  return encoding == "F16" ? F16ToF32(narrow) : BF16ToF32(narrow);
}

}  // namespace

absl::StatusOr<std::unique_ptr<TorchFile>> TorchFile::Open(const std::string& path) {
  QST_ASSIGN_OR_RETURN(std::unique_ptr<MappedFile> file, MappedFile::Open(path));
  std::unique_ptr<TorchFile> source(new TorchFile);
  source->path_ = path;
  source->data_ = file->data();
  source->size_ = file->size();
  source->file_ = std::move(file);
  QST_RETURN_IF_ERROR(source->Parse());
  return source;
}

absl::StatusOr<std::unique_ptr<TorchFile>> TorchFile::FromMemory(const std::uint8_t* data, std::uint64_t size,
                                                                 const std::string& name) {
  std::unique_ptr<TorchFile> source(new TorchFile);
  source->path_ = name;
  source->data_ = data;
  source->size_ = size;
  QST_RETURN_IF_ERROR(source->Parse());
  return source;
}

absl::Status TorchFile::Parse() {
  if (size_ >= 4 && std::memcmp(data_, "PK\3\4", 4) == 0) return ParseZip();
  return ParseLegacy();
}

absl::Status TorchFile::ParseZip() {
  using Members = std::map<std::string, Bytes>;
  QST_ASSIGN_OR_RETURN(const Members members, ReadZipDirectory());
  // All members lie in one folder, whose name is the writer's choice.
  std::string prefix;
  const Bytes* pickle_bytes = nullptr;
  for (const auto& [name, bytes] : members) {
    if (!absl::EndsWith(name, "/data.pkl")) continue;
    if (pickle_bytes != nullptr) return absl::InvalidArgumentError(absl::StrCat(path_, ": two data.pkl in one archive"));
    pickle_bytes = &bytes;
    prefix = name.substr(0, name.size() - 8);
  }
  if (pickle_bytes == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat(path_, ": a zip archive without data.pkl: not written by torch.save"));
  }
  const auto order = members.find(prefix + "byteorder");
  if (order != members.end()) {
    const absl::string_view text(reinterpret_cast<const char*>(data_) + order->second.offset, order->second.size);
    if (text != "little") {
      return absl::UnimplementedError(absl::StrCat(path_, ": byte order '", Printable(text), "'; only little is read"));
    }
  }
  std::map<std::string, Bytes> storages;
  const std::string folder = prefix + "data/";
  for (const auto& [name, bytes] : members) {
    if (absl::StartsWith(name, folder)) storages[name.substr(folder.size())] = bytes;
  }
  const absl::string_view text(reinterpret_cast<const char*>(data_) + pickle_bytes->offset, pickle_bytes->size);
  QST_ASSIGN_OR_RETURN(const TorchPickle pickle, TorchPickle::Read(text, path_));
  return AddTensors(pickle, storages);
}

// Five pickles one after the other: magic number, protocol, facts on the machine, the object, the keys of the storages;
// then, in the order of the keys, each storage as its number of elements (8 bytes) and its elements.
absl::Status TorchFile::ParseLegacy() {
  absl::string_view rest(reinterpret_cast<const char*>(data_), size_);
  const auto not_torch = [&] {
    return absl::InvalidArgumentError(absl::StrCat(path_, ": not written by torch.save: neither a zip archive nor a "
                                                          "pickle with torch's magic number"));
  };
  if (rest.size() > 262 && rest.substr(257, 5) == "ustar") {
    return absl::UnimplementedError(absl::StrCat(path_, ": written by a torch before 0.1.10 (tar); save it again"));
  }
  std::vector<TorchPickle> pickles;  // the object and the keys; what comes before may be large and is not needed
  for (int i = 0; i < 5; ++i) {
    absl::StatusOr<TorchPickle> pickle = TorchPickle::Read(rest, path_);
    if (!pickle.ok()) return i == 0 && !rest.empty() ? not_torch() : pickle.status();
    rest.remove_prefix(pickle->num_bytes());
    if (i == 0) {
      const std::string& magic = pickle->root().text;
      if (magic.size() != sizeof(kLegacyMagic) || std::memcmp(magic.data(), kLegacyMagic, magic.size()) != 0) {
        return not_torch();
      }
    }
    if (i == 1 && (pickle->root().kind != TorchValue::Kind::kInt || pickle->root().number != kLegacyProtocol)) {
      return absl::UnimplementedError(absl::StrCat(path_, ": torch.save protocol ", pickle->root().number,
                                                   "; known is ", kLegacyProtocol));
    }
    if (i == 2) {
      const TorchValue* little = pickle->root().Find("little_endian");
      if (little != nullptr && little->number == 0) {
        return absl::UnimplementedError(absl::StrCat(path_, ": written on a big-endian machine"));
      }
    }
    if (i >= 3) pickles.push_back(*std::move(pickle));
  }
  // The sizes of the elements are known from the tensors that refer to the storages.
  std::map<std::string, int> element_bytes;
  const TorchPickle& object = pickles[0];
  for (const TorchStorageRef& storage : object.storages()) {
    element_bytes[storage.key] = FindStorageType(storage.type)->bytes;
  }
  std::map<std::string, Bytes> storages;
  for (const TorchValue* key : pickles[1].root().items) {
    const auto known = key->kind == TorchValue::Kind::kString ? element_bytes.find(key->text) : element_bytes.end();
    if (known == element_bytes.end()) {
      return absl::InvalidArgumentError(absl::StrCat(path_, ": storage '", Printable(key->text), "' is used by nobody"));
    }
    std::uint64_t num_elems = 0;
    if (rest.size() < sizeof(num_elems)) {
      return absl::DataLossError(absl::StrCat(path_, ": cut short before storage '", Printable(key->text), "'"));
    }
    std::memcpy(&num_elems, rest.data(), sizeof(num_elems));
    rest.remove_prefix(sizeof(num_elems));
    if (num_elems > rest.size() / static_cast<std::uint64_t>(known->second)) {
      return absl::DataLossError(absl::StrCat(path_, ": cut short: storage '", Printable(key->text), "' has ", num_elems,
                                              " elements, the file ends after ", rest.size(), " bytes of them"));
    }
    Bytes bytes;
    bytes.offset = size_ - rest.size();
    bytes.size = num_elems * static_cast<std::uint64_t>(known->second);
    rest.remove_prefix(bytes.size);
    storages[key->text] = bytes;
  }
  return AddTensors(object, storages);
}

absl::Status TorchFile::AddTensors(const TorchPickle& pickle, const std::map<std::string, Bytes>& storages) {
  const TorchValue* dict = &pickle.root();
  if (dict->kind == TorchValue::Kind::kDict && !HasTensor(*dict)) {
    for (const char* inner : {"state_dict", "model"}) {
      const TorchValue* value = dict->Find(inner);
      if (value != nullptr && value->kind == TorchValue::Kind::kDict && HasTensor(*value)) {
        dict = value;
        break;
      }
    }
  }
  if (dict->kind != TorchValue::Kind::kDict || !HasTensor(*dict)) {
    return absl::InvalidArgumentError(absl::StrCat(path_, ": holds no dictionary of tensors"));
  }
  for (std::size_t i = 0; i + 1 < dict->items.size(); i += 2) {
    const TorchValue& value = *dict->items[i + 1];
    if (value.kind != TorchValue::Kind::kTensor) continue;
    if (dict->items[i]->kind != TorchValue::Kind::kString) {
      return absl::InvalidArgumentError(absl::StrCat(path_, ": a tensor whose name is no text"));
    }
    QST_RETURN_IF_ERROR(AddTensor(dict->items[i]->text, *value.tensor, storages));
  }
  return absl::OkStatus();
}

absl::Status TorchFile::AddTensor(const std::string& name, const TorchTensorRef& tensor,
                                  const std::map<std::string, Bytes>& storages) {
  const auto invalid = [&](const auto&... parts) {
    return absl::InvalidArgumentError(absl::StrCat(path_, ": tensor '", Printable(name), "': ", parts...));
  };
  if (names_.size() >= kMaxTensors) return invalid("more than ", kMaxTensors, " tensors");
  const auto storage = storages.find(tensor.storage.key);
  if (storage == storages.end()) return invalid("storage '", Printable(tensor.storage.key), "' is not in the file");
  const StorageType& type = *FindStorageType(tensor.storage.type);
  Entry entry;
  entry.info.encoding = type.encoding;
  if (type.is_plain) entry.info.dtype = type.dtype;
  entry.info.shape = tensor.shape;
  entry.strides = tensor.strides;
  // The last element that is touched, and whether elements follow each other without gaps.
  std::int64_t num_elems = 1;
  std::int64_t last = 0;
  std::int64_t dense_stride = 1;
  for (std::size_t i = tensor.shape.size(); i-- > 0;) {
    const std::int64_t size = tensor.shape[i];
    const std::int64_t stride = tensor.strides[i];
    std::int64_t reach = 0;
    if (size < 0 || stride < 0) return invalid("negative size or stride");
    if (__builtin_mul_overflow(num_elems, size, &num_elems) ||
        __builtin_mul_overflow(std::max<std::int64_t>(size - 1, 0), stride, &reach) ||
        __builtin_add_overflow(last, reach, &last)) {
      return invalid("the shape has more elements than can be counted");
    }
    if (size != 1 && stride != dense_stride) entry.is_contiguous = false;
    // Such a stride leads nowhere, so that it may be any number; counting with it could overflow.
    if (size == 1) entry.strides[i] = 0;
    dense_stride = num_elems;
  }
  entry.info.num_elems = num_elems;
  const std::int64_t storage_elems = static_cast<std::int64_t>(storage->second.size) / type.bytes;
  std::int64_t begin = 0;
  if (tensor.offset < 0 || __builtin_add_overflow(tensor.offset, tensor.storage.view_offset, &begin) ||
      begin > storage_elems || (num_elems > 0 && last >= storage_elems - begin)) {
    return invalid("reaches beyond the ", storage_elems, " elements of its storage");
  }
  entry.file_offset = storage->second.offset + static_cast<std::uint64_t>(begin) * type.bytes;
  entry.extent.offset = entry.file_offset;
  entry.extent.size = num_elems > 0 ? static_cast<std::uint64_t>(last + 1) * type.bytes : 0;
  // As in Python: the last of equal keys counts, in the place of the first.
  if (entries_.find(name) == entries_.end()) names_.push_back(name);
  entries_[name] = std::move(entry);
  return absl::OkStatus();
}

const TensorInfo* TorchFile::Find(absl::string_view name) const {
  const auto it = entries_.find(name);
  return it == entries_.end() ? nullptr : &it->second.info;
}

absl::Status TorchFile::ReadFloat(absl::string_view name, std::int64_t first, std::int64_t count, float* out) const {
  const auto it = entries_.find(name);
  QST_RETURN_IF_ERROR(CheckReadRange(it == entries_.end() ? nullptr : &it->second.info, path_, name, first, count));
  if (count == 0) return absl::OkStatus();
  const Entry& entry = it->second;
  const std::string& encoding = entry.info.encoding;
  if (encoding != "F32" && encoding != "F16" && encoding != "BF16" && encoding != "F64") {
    return absl::UnimplementedError(absl::StrCat(path_, ": tensor '", name, "' has dtype ", encoding,
                                                 "; weights are read from F32, F16, BF16 and F64"));
  }
  const std::int64_t bytes = ElementBytes(encoding);
  const std::uint8_t* const data = data_ + entry.file_offset;
  if (entry.is_contiguous) {
    if (encoding == "F32") {
      std::memcpy(out, data + first * bytes, static_cast<std::size_t>(count) * 4);
      return absl::OkStatus();
    }
    if (encoding == "F64") return NarrowFloat64(data + first * bytes, first, count, path_, name, out);
    for (std::int64_t i = 0; i < count; ++i) out[i] = LoadFloat(encoding, data + (first + i) * bytes);
    return absl::OkStatus();
  }
  // Row-major index, counted up along with the place.
  const std::vector<std::int64_t>& shape = entry.info.shape;
  std::vector<std::int64_t> index(shape.size());
  std::int64_t place = 0;
  std::int64_t rest = first;
  for (std::size_t d = shape.size(); d-- > 0;) {
    index[d] = rest % shape[d];
    rest /= shape[d];
    place += index[d] * entry.strides[d];
  }
  for (std::int64_t i = 0; i < count; ++i) {
    if (encoding == "F64") {
      QST_RETURN_IF_ERROR(NarrowFloat64(data + place * bytes, first + i, 1, path_, name, out + i));
    } else {
      out[i] = LoadFloat(encoding, data + place * bytes);
    }
    for (std::size_t d = shape.size(); d-- > 0;) {
      place += entry.strides[d];
      if (++index[d] < shape[d]) break;
      place -= shape[d] * entry.strides[d];
      index[d] = 0;
    }
  }
  return absl::OkStatus();
}

absl::Status TorchFile::ReadBytes(absl::string_view name, std::int64_t first, std::int64_t count, void* out) const {
  const auto it = entries_.find(name);
  QST_RETURN_IF_ERROR(CheckReadRange(it == entries_.end() ? nullptr : &it->second.info, path_, name, 0, 0));
  const Entry& entry = it->second;
  if (!entry.is_contiguous) {
    return absl::UnimplementedError(absl::StrCat(path_, ": tensor '", name, "' is not stored contiguously"));
  }
  QST_RETURN_IF_ERROR(CheckByteRange(static_cast<std::int64_t>(entry.extent.size), path_, name, first, count));
  if (count > 0) std::memcpy(out, data_ + entry.file_offset + first, static_cast<std::size_t>(count));
  return absl::OkStatus();
}

void TorchFile::Release(absl::string_view name) const {
  const auto it = entries_.find(name);
  if (file_ != nullptr && it != entries_.end()) file_->DontNeed(it->second.extent.offset, it->second.extent.size);
}

}  // namespace qst
