#include "worker/checkpoint/gguf_file.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <set>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "proto/support/status_macros.h"

namespace qst {
namespace {

// Types of metadata values, by their numbers in files.
enum ValueType : std::uint32_t {
  kUint8 = 0,
  kInt8 = 1,
  kUint16 = 2,
  kInt16 = 3,
  kUint32 = 4,
  kInt32 = 5,
  kFloat32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9,
  kUint64 = 10,
  kInt64 = 11,
  kFloat64 = 12,
};

// Bytes of a scalar type; 0 for strings, arrays and unknown numbers.
std::uint64_t ScalarBytes(std::uint32_t type) {
  switch (type) {
    case kUint8:
    case kInt8:
    case kBool:
      return 1;
    case kUint16:
    case kInt16:
      return 2;
    case kUint32:
    case kInt32:
    case kFloat32:
      return 4;
    case kUint64:
    case kInt64:
    case kFloat64:
      return 8;
    default:
      return 0;
  }
}

bool IsIntType(std::uint32_t type) { return type <= kInt32 || type == kUint64 || type == kInt64; }
bool IsNumberType(std::uint32_t type) { return IsIntType(type) || type == kFloat32 || type == kFloat64; }

constexpr std::uint64_t kMaxStringBytes = 64 << 20;
constexpr std::uint32_t kMaxDimensions = 4;
constexpr std::uint64_t kDefaultAlignment = 32;
// The fewest bytes that an entry can take: what a count may claim is bounded by what is left of the file.
constexpr std::uint64_t kMinMetadataBytes = 8 + 4 + 1;
constexpr std::uint64_t kMinTensorBytes = 8 + 4 + 8 + 4 + 8;
// More entries than any model has, whatever the file could hold.
constexpr std::uint64_t kMaxEntries = 1'000'000;

// Names come from the file and go into one-line messages.
std::string Printable(absl::string_view name) {
  return absl::CHexEscape(name.size() <= 200 ? name : absl::StrCat(name.substr(0, 200), "..."));
}

std::uint64_t LoadLittleEndian(const std::uint8_t* bytes, std::uint64_t num_bytes) {
  std::uint64_t value = 0;
  for (std::uint64_t i = num_bytes; i-- > 0;) value = (value << 8) | bytes[i];
  return value;
}

}  // namespace

// Reads forward through the file; the first step past its end is remembered, and everything after it reads
// as zero.
class GgufFile::Cursor {
 public:
  Cursor(const std::uint8_t* data, std::uint64_t size) : data_(data), size_(size) {}

  std::uint64_t offset() const { return offset_; }
  std::uint64_t remaining() const { return size_ - offset_; }
  bool ended() const { return ended_; }

  std::uint64_t Number(std::uint64_t num_bytes) {
    if (!Skip(num_bytes)) return 0;
    return LoadLittleEndian(data_ + offset_ - num_bytes, num_bytes);
  }
  std::uint32_t U32() { return static_cast<std::uint32_t>(Number(4)); }
  std::uint64_t U64() { return Number(8); }
  absl::string_view String() {
    const std::uint64_t length = U64();
    if (!Skip(length)) return {};
    return absl::string_view(reinterpret_cast<const char*>(data_) + offset_ - length, length);
  }
  bool Skip(std::uint64_t num_bytes) {
    if (ended_ || num_bytes > remaining()) {
      ended_ = true;
      return false;
    }
    offset_ += num_bytes;
    return true;
  }

 private:
  const std::uint8_t* data_;
  std::uint64_t size_;
  std::uint64_t offset_ = 0;
  bool ended_ = false;
};

absl::StatusOr<std::unique_ptr<GgufFile>> GgufFile::Open(const std::string& path) {
  QST_ASSIGN_OR_RETURN(std::unique_ptr<MappedFile> file, MappedFile::Open(path));
  std::unique_ptr<GgufFile> gguf(new GgufFile);
  gguf->path_ = path;
  gguf->data_ = file->data();
  gguf->size_ = file->size();
  gguf->file_ = std::move(file);
  QST_RETURN_IF_ERROR(gguf->Parse());
  return gguf;
}

absl::StatusOr<std::unique_ptr<GgufFile>> GgufFile::FromMemory(const std::uint8_t* data, std::uint64_t size,
                                                               const std::string& name) {
  std::unique_ptr<GgufFile> gguf(new GgufFile);
  gguf->path_ = name;
  gguf->data_ = data;
  gguf->size_ = size;
  QST_RETURN_IF_ERROR(gguf->Parse());
  return gguf;
}

absl::Status GgufFile::Parse() {
  Cursor cursor(data_, size_);
  const std::uint32_t magic = cursor.U32();
  const std::uint32_t version = cursor.U32();
  if (size_ >= 4 && magic != 0x46554747u) {  // "GGUF" read as a little-endian number
    return absl::InvalidArgumentError(absl::StrCat(path_, ": not a GGUF file (does not start with 'GGUF')"));
  }
  if (!cursor.ended() && version != 2 && version != 3) {
    const bool swapped = version == 0x02000000u || version == 0x03000000u;
    return absl::UnimplementedError(
        swapped ? absl::StrCat(path_, ": a big-endian GGUF file; only little endian is read")
                : absl::StrCat(path_, ": GGUF version ", version, " is not supported (2 and 3 are)"));
  }
  const std::uint64_t num_tensors = cursor.U64();
  const std::uint64_t num_metadata = cursor.U64();
  if (cursor.ended()) {
    return absl::DataLossError(
        absl::StrCat(path_, ": cut short: ends after ", size_, " bytes, within the GGUF header"));
  }
  QST_RETURN_IF_ERROR(ParseMetadata(cursor, num_metadata));
  QST_RETURN_IF_ERROR(ParseTensors(cursor, num_tensors));
  return CheckLayout();
}

absl::Status GgufFile::ParseMetadata(Cursor& cursor, std::uint64_t count) {
  if (count > kMaxEntries || count > cursor.remaining() / kMinMetadataBytes) {
    return absl::DataLossError(absl::StrCat(path_, ": announces ", count, " metadata entries; the ", cursor.remaining(),
                                            " bytes that follow cannot hold them"));
  }
  for (std::uint64_t i = 0; i < count; ++i) {
    const std::string key(cursor.String());
    Value value;
    value.type = cursor.U32();
    const std::string where = absl::StrCat(path_, ": metadata ", i, " '", Printable(key), "'");
    if (value.type == kArray) {
      value.is_array = true;
      value.type = cursor.U32();
      value.count = cursor.U64();
    }
    value.file_offset = cursor.offset();
    const std::uint64_t scalar_bytes = ScalarBytes(value.type);
    if (cursor.ended()) return absl::DataLossError(absl::StrCat(where, ": cut short: the file ends here"));
    if (key.empty()) return absl::InvalidArgumentError(absl::StrCat(where, ": the key is empty"));
    if (scalar_bytes == 0 && value.type != kString) {
      return absl::InvalidArgumentError(absl::StrCat(where, ": type ", value.type, " is not known",
                                                     value.type == kArray ? " (arrays of arrays are not read)" : ""));
    }
    // A string takes at least the eight bytes of its length.
    if (value.count > cursor.remaining() / (value.type == kString ? 8 : scalar_bytes)) {
      return absl::DataLossError(absl::StrCat(where, ": cut short: holds ", value.count, " values, only ",
                                              cursor.remaining(), " bytes follow"));
    }
    if (value.type == kString) {
      for (std::uint64_t k = 0; k < value.count && !cursor.ended(); ++k) {
        if (cursor.String().size() > kMaxStringBytes) {
          return absl::InvalidArgumentError(absl::StrCat(where, ": a string longer than ", kMaxStringBytes, " bytes"));
        }
      }
    } else {
      cursor.Skip(scalar_bytes * value.count);
    }
    if (cursor.ended()) return absl::DataLossError(absl::StrCat(where, ": cut short: the file ends here"));
    if (!metadata_.emplace(key, value).second) {
      return absl::InvalidArgumentError(absl::StrCat(where, ": the key comes twice"));
    }
  }
  return absl::OkStatus();
}

absl::Status GgufFile::ParseTensors(Cursor& cursor, std::uint64_t count) {
  if (count > kMaxEntries || count > cursor.remaining() / kMinTensorBytes) {
    return absl::DataLossError(absl::StrCat(path_, ": announces ", count, " tensors; the ", cursor.remaining(),
                                            " bytes that follow cannot hold them"));
  }
  std::uint64_t alignment = kDefaultAlignment;
  QST_ASSIGN_OR_RETURN(const std::optional<std::int64_t> given_alignment, Int("general.alignment"));
  if (given_alignment.has_value()) {
    if (*given_alignment < 1 || *given_alignment > (1 << 20) || (*given_alignment & (*given_alignment - 1)) != 0) {
      return absl::InvalidArgumentError(
          absl::StrCat(path_, ": general.alignment is ", *given_alignment, ", must be a power of two up to 1048576"));
    }
    alignment = static_cast<std::uint64_t>(*given_alignment);
  }

  std::set<std::string> names;
  tensors_.reserve(count);
  for (std::uint64_t i = 0; i < count; ++i) {
    GgufTensor tensor;
    tensor.name = std::string(cursor.String());
    const std::string where = absl::StrCat(path_, ": tensor ", i, " '", Printable(tensor.name), "'");
    const std::uint32_t num_dims = cursor.U32();
    if (!cursor.ended() && (num_dims < 1 || num_dims > kMaxDimensions)) {
      return absl::InvalidArgumentError(absl::StrCat(where, ": ", num_dims, " dimensions, 1 to 4 are possible"));
    }
    std::int64_t num_elems = 1;
    bool is_absurd = false;
    for (std::uint32_t d = 0; d < num_dims && !cursor.ended(); ++d) {
      const std::uint64_t dim = cursor.U64();
      is_absurd = is_absurd || dim == 0 || dim > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
      tensor.dims.push_back(is_absurd ? 1 : static_cast<std::int64_t>(dim));
      is_absurd = is_absurd || __builtin_mul_overflow(num_elems, tensor.dims.back(), &num_elems);
    }
    const std::uint32_t type = cursor.U32();
    const std::uint64_t offset = cursor.U64();
    if (cursor.ended())
      return absl::DataLossError(absl::StrCat(where, ": cut short: the file ends in its description"));
    if (tensor.name.empty()) return absl::InvalidArgumentError(absl::StrCat(where, ": the name is empty"));
    if (!names.insert(tensor.name).second) {
      return absl::InvalidArgumentError(absl::StrCat(where, ": the name comes twice"));
    }
    const GgmlTypeTraits* traits = FindGgmlType(type);
    if (traits == nullptr) {
      return absl::UnimplementedError(
          absl::StrCat(where, ": ", GgmlTypeName(type), " is not supported (", SupportedGgmlTypes(), " are)"));
    }
    if (is_absurd) {
      return absl::InvalidArgumentError(absl::StrCat(where, ": a dimension is 0, or there are too many elements"));
    }
    if (tensor.dims[0] % traits->block_elems != 0) {
      return absl::InvalidArgumentError(absl::StrCat(where, ": rows of ", tensor.dims[0],
                                                     " elements are no multiple of ", traits->name, "'s blocks of ",
                                                     traits->block_elems));
    }
    std::int64_t num_bytes = 0;
    if (__builtin_mul_overflow(num_elems / traits->block_elems, std::int64_t{traits->block_bytes}, &num_bytes)) {
      return absl::InvalidArgumentError(absl::StrCat(where, ": a dimension is 0, or there are too many elements"));
    }
    if (offset % alignment != 0) {
      return absl::InvalidArgumentError(
          absl::StrCat(where, ": offset ", offset, " is no multiple of the alignment ", alignment));
    }
    tensor.type = traits->type;
    tensor.num_elems = num_elems;
    tensor.num_bytes = static_cast<std::uint64_t>(num_bytes);
    tensor.file_offset = offset;  // made absolute below, when the start of the data is known
    tensors_.push_back(std::move(tensor));
  }

  const std::uint64_t data_begin = (cursor.offset() + alignment - 1) / alignment * alignment;
  for (GgufTensor& tensor : tensors_) {
    const std::uint64_t data_bytes = data_begin > size_ ? 0 : size_ - data_begin;
    if (tensor.file_offset > data_bytes || tensor.num_bytes > data_bytes - tensor.file_offset) {
      return absl::DataLossError(absl::StrCat(path_, ": tensor '", Printable(tensor.name), "': cut short: takes ",
                                              tensor.num_bytes, " bytes from ", tensor.file_offset,
                                              " of the tensor data, the file holds ", data_bytes));
    }
    tensor.file_offset += data_begin;
  }
  return absl::OkStatus();
}

absl::Status GgufFile::CheckLayout() {
  std::vector<const GgufTensor*> order;
  order.reserve(tensors_.size());
  for (const GgufTensor& tensor : tensors_) order.push_back(&tensor);
  std::sort(order.begin(), order.end(),
            [](const GgufTensor* a, const GgufTensor* b) { return a->file_offset < b->file_offset; });
  for (std::size_t i = 1; i < order.size(); ++i) {
    if (order[i]->file_offset < order[i - 1]->file_offset + order[i - 1]->num_bytes) {
      return absl::InvalidArgumentError(absl::StrCat(path_, ": tensor '", Printable(order[i]->name),
                                                     "' overlaps tensor '", Printable(order[i - 1]->name), "'"));
    }
  }
  return absl::OkStatus();
}

const GgufFile::Value* GgufFile::Find(absl::string_view key) const {
  const auto it = metadata_.find(key);
  return it == metadata_.end() ? nullptr : &it->second;
}

bool GgufFile::IsArray(absl::string_view key) const {
  const Value* value = Find(key);
  return value != nullptr && value->is_array;
}

absl::Status GgufFile::WrongType(absl::string_view key, absl::string_view wanted) const {
  return absl::InvalidArgumentError(absl::StrCat(path_, ": metadata '", key, "' is not ", wanted));
}

std::int64_t GgufFile::IntAt(const Value& value, std::uint64_t index) const {
  const std::uint64_t num_bytes = ScalarBytes(value.type);
  const std::uint64_t bits = LoadLittleEndian(data_ + value.file_offset + index * num_bytes, num_bytes);
  switch (value.type) {
    case kInt8:
      return static_cast<std::int8_t>(bits);
    case kInt16:
      return static_cast<std::int16_t>(bits);
    case kInt32:
      return static_cast<std::int32_t>(bits);
    default:  // beyond 2^63, uint64 turns negative, which every caller refuses
      return static_cast<std::int64_t>(bits);
  }
}

double GgufFile::FloatAt(const Value& value, std::uint64_t index) const {
  if (IsIntType(value.type)) return static_cast<double>(IntAt(value, index));
  const std::uint8_t* bytes = data_ + value.file_offset + index * ScalarBytes(value.type);
  if (value.type == kFloat32) {
    float number;
    std::memcpy(&number, bytes, sizeof(number));
    return number;
  }
  double number;
  std::memcpy(&number, bytes, sizeof(number));
  return number;
}

absl::StatusOr<std::optional<std::int64_t>> GgufFile::Int(absl::string_view key) const {
  const Value* value = Find(key);
  if (value == nullptr) return std::optional<std::int64_t>();
  if (value->is_array || !IsIntType(value->type)) return WrongType(key, "an integer");
  return std::optional<std::int64_t>(IntAt(*value, 0));
}

absl::StatusOr<std::optional<double>> GgufFile::Float(absl::string_view key) const {
  const Value* value = Find(key);
  if (value == nullptr) return std::optional<double>();
  if (value->is_array || !IsNumberType(value->type)) return WrongType(key, "a number");
  return std::optional<double>(FloatAt(*value, 0));
}

absl::StatusOr<std::optional<bool>> GgufFile::Bool(absl::string_view key) const {
  const Value* value = Find(key);
  if (value == nullptr) return std::optional<bool>();
  if (value->is_array || value->type != kBool) return WrongType(key, "true or false");
  return std::optional<bool>(data_[value->file_offset] != 0);
}

absl::StatusOr<std::optional<std::string>> GgufFile::String(absl::string_view key) const {
  const Value* value = Find(key);
  if (value == nullptr) return std::optional<std::string>();
  if (value->is_array || value->type != kString) return WrongType(key, "a string");
  Cursor cursor(data_, size_);
  cursor.Skip(value->file_offset);
  return std::optional<std::string>(std::string(cursor.String()));
}

absl::StatusOr<std::optional<std::vector<std::string>>> GgufFile::Strings(absl::string_view key) const {
  const Value* value = Find(key);
  if (value == nullptr) return std::optional<std::vector<std::string>>();
  if (!value->is_array || value->type != kString) return WrongType(key, "a list of strings");
  Cursor cursor(data_, size_);
  cursor.Skip(value->file_offset);
  std::vector<std::string> strings;
  strings.reserve(value->count);
  for (std::uint64_t i = 0; i < value->count; ++i) strings.emplace_back(cursor.String());
  return std::make_optional(std::move(strings));
}

absl::StatusOr<std::optional<std::vector<std::int64_t>>> GgufFile::Ints(absl::string_view key) const {
  const Value* value = Find(key);
  if (value == nullptr) return std::optional<std::vector<std::int64_t>>();
  if (!value->is_array || !IsIntType(value->type)) return WrongType(key, "a list of integers");
  std::vector<std::int64_t> numbers(value->count);
  for (std::uint64_t i = 0; i < value->count; ++i) numbers[i] = IntAt(*value, i);
  return std::make_optional(std::move(numbers));
}

absl::StatusOr<std::optional<std::vector<double>>> GgufFile::Floats(absl::string_view key) const {
  const Value* value = Find(key);
  if (value == nullptr) return std::optional<std::vector<double>>();
  if (!value->is_array || !IsNumberType(value->type)) return WrongType(key, "a list of numbers");
  std::vector<double> numbers(value->count);
  for (std::uint64_t i = 0; i < value->count; ++i) numbers[i] = FloatAt(*value, i);
  return std::make_optional(std::move(numbers));
}

}  // namespace qst
