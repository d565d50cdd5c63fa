#include "worker/checkpoint/safetensors_reader.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <set>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "kernels/dtype_convert.h"
#include "nlohmann/json.hpp"
#include "proto/support/status_macros.h"
#include "worker/checkpoint/safetensors_format.h"

namespace qst {
namespace {

using Json = nlohmann::json;

// More tensors or dimensions than any model has; a file that claims more is hostile or broken.
constexpr std::size_t kMaxTensors = 1'000'000;
constexpr std::size_t kMaxDimensions = 16;

// Bytes of one element of every dtype that the format knows, 0 for others. Tensors of dtypes that this
// project cannot use are still checked, since files carry them beside those that it can.
int ElementBytes(absl::string_view dtype) {
  struct Row {
    const char* name;
    int bytes;
  };
  static constexpr Row kRows[] = {
      {"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E4M3", 1}, {"F8_E5M2", 1}, {"I16", 2}, {"U16", 2}, {"F16", 2},
      {"BF16", 2}, {"I32", 4}, {"U32", 4}, {"F32", 4},     {"F64", 8},     {"I64", 8}, {"U64", 8},
  };
  for (const Row& row : kRows) {
    if (dtype == row.name) return row.bytes;
  }
  return 0;
}

std::uint64_t LoadLittleEndian64(const std::uint8_t* bytes) {
  std::uint64_t value = 0;
  for (int i = 7; i >= 0; --i) value = (value << 8) | bytes[i];
  return value;
}

// Names come from the file and go into one-line messages.
std::string Printable(absl::string_view name) {
  return absl::CHexEscape(name.size() <= 200 ? name : absl::StrCat(name.substr(0, 200), "..."));
}

}  // namespace

absl::StatusOr<std::unique_ptr<SafetensorsReader>> SafetensorsReader::Open(const std::string& path) {
  QST_ASSIGN_OR_RETURN(std::unique_ptr<MappedFile> file, MappedFile::Open(path));
  std::unique_ptr<SafetensorsReader> reader(new SafetensorsReader);
  reader->path_ = path;
  reader->data_ = file->data();
  reader->size_ = file->size();
  reader->file_ = std::move(file);
  QST_RETURN_IF_ERROR(reader->Parse());
  return reader;
}

absl::StatusOr<std::unique_ptr<SafetensorsReader>> SafetensorsReader::FromMemory(const std::uint8_t* data,
                                                                                 std::uint64_t size,
                                                                                 const std::string& name) {
  std::unique_ptr<SafetensorsReader> reader(new SafetensorsReader);
  reader->path_ = name;
  reader->data_ = data;
  reader->size_ = size;
  QST_RETURN_IF_ERROR(reader->Parse());
  return reader;
}

absl::Status SafetensorsReader::Parse() {
  const auto invalid = [&](const auto&... parts) {
    return absl::InvalidArgumentError(absl::StrCat(path_, ": ", parts...));
  };
  if (size_ < 8) {
    return absl::DataLossError(
        absl::StrCat(path_, ": cut short: ", size_, " bytes, a safetensors file has at least 8"));
  }
  const std::uint64_t header_bytes = LoadLittleEndian64(data_);
  if (header_bytes > kSafetensorsMaxHeaderBytes) {
    return invalid("not a safetensors file: its header would be ", header_bytes, " bytes long, at most ",
                   kSafetensorsMaxHeaderBytes, " are allowed");
  }
  if (header_bytes > size_ - 8) {
    return absl::DataLossError(absl::StrCat(path_, ": cut short: the header is ", header_bytes,
                                            " bytes long, the file ends after ", size_ - 8, " of them"));
  }
  data_begin_ = 8 + header_bytes;
  const std::uint64_t data_bytes = size_ - data_begin_;

  // The parser keeps the last of several equal keys; two tensors of one name must be an error instead.
  std::set<std::string> keys;
  std::string repeated;
  bool too_many = false;
  const auto watch_keys = [&](int depth, Json::parse_event_t event, Json& parsed) {
    // Nothing nests deeper than {tensor: {shape: [...]}}; millions of brackets are not kept.
    if (depth > 3) return false;
    if (event == Json::parse_event_t::key && depth == 1) {
      if (!keys.insert(parsed.get_ref<const std::string&>()).second && repeated.empty()) {
        repeated = parsed.get<std::string>();
      }
      too_many = too_many || keys.size() > kMaxTensors;
    }
    return true;
  };
  const char* header_text = reinterpret_cast<const char*>(data_) + 8;
  const Json header = Json::parse(header_text, header_text + header_bytes, watch_keys, /*allow_exceptions=*/false);
  if (header.is_discarded() || !header.is_object()) return invalid("the header is not a JSON object");
  if (!repeated.empty()) return invalid("two tensors are named '", Printable(repeated), "'");
  if (too_many) return invalid("more than ", kMaxTensors, " tensors");

  for (const auto& [name, value] : header.items()) {
    if (name == kSafetensorsMetadataKey) {
      if (!value.is_object()) return invalid("__metadata__ is not an object");
      for (const auto& [key, text] : value.items()) {
        if (!text.is_string()) return invalid("__metadata__ '", Printable(key), "' is not a string");
        metadata_[key] = text.get<std::string>();
      }
      continue;
    }
    const std::string tensor = absl::StrCat("tensor '", Printable(name), "'");
    if (!value.is_object() || !value.contains("dtype") || !value["dtype"].is_string() || !value.contains("shape") ||
        !value["shape"].is_array() || !value.contains("data_offsets") || !value["data_offsets"].is_array() ||
        value["data_offsets"].size() != 2) {
      return invalid(tensor, ": needs a dtype, a shape and two data_offsets");
    }
    Entry entry;
    entry.info.encoding = value["dtype"].get<std::string>();
    entry.info.dtype = SafetensorsDTypeFromName(entry.info.encoding);
    const int element_bytes = ElementBytes(entry.info.encoding);
    if (element_bytes == 0) {
      return absl::UnimplementedError(
          absl::StrCat(path_, ": ", tensor, ": dtype '", Printable(entry.info.encoding), "' is not known"));
    }
    const Json& shape = value["shape"];
    if (shape.size() > kMaxDimensions) return invalid(tensor, ": ", shape.size(), " dimensions");
    std::int64_t num_elems = 1;
    std::int64_t num_bytes = 0;
    for (const Json& dim : shape) {
      if (!dim.is_number_unsigned() ||
          dim.get<std::uint64_t>() > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) {
        return invalid(tensor, ": dimensions must be whole numbers");
      }
      entry.info.shape.push_back(dim.get<std::int64_t>());
      if (__builtin_mul_overflow(num_elems, entry.info.shape.back(), &num_elems)) {
        return invalid(tensor, ": the shape has more elements than can be counted");
      }
    }
    if (__builtin_mul_overflow(num_elems, std::int64_t{element_bytes}, &num_bytes)) {
      return invalid(tensor, ": the shape has more elements than can be counted");
    }
    entry.info.num_elems = num_elems;
    const Json& offsets = value["data_offsets"];
    if (!offsets[0].is_number_unsigned() || !offsets[1].is_number_unsigned()) {
      return invalid(tensor, ": data_offsets must be whole numbers");
    }
    entry.begin = offsets[0].get<std::uint64_t>();
    entry.end = offsets[1].get<std::uint64_t>();
    if (entry.begin > entry.end) {
      return invalid(tensor, ": data_offsets [", entry.begin, ", ", entry.end, "] run backwards");
    }
    if (entry.end - entry.begin != static_cast<std::uint64_t>(num_bytes)) {
      return invalid(tensor, ": data_offsets hold ", entry.end - entry.begin, " bytes, dtype and shape need ",
                     num_bytes);
    }
    if (entry.end > data_bytes) {
      return absl::DataLossError(absl::StrCat(path_, ": ", tensor, ": cut short: its data end at byte ", entry.end,
                                              " of the tensor data, the file holds ", data_bytes));
    }
    entries_.emplace(name, std::move(entry));
  }

  // In the order of the file, tensors must cover the data exactly.
  std::vector<std::pair<std::string, const Entry*>> order;
  order.reserve(entries_.size());
  for (const auto& [name, entry] : entries_) order.emplace_back(name, &entry);
  std::sort(order.begin(), order.end(), [](const auto& a, const auto& b) {
    return std::make_pair(a.second->begin, a.second->end) < std::make_pair(b.second->begin, b.second->end);
  });
  std::uint64_t covered = 0;
  const std::string* previous = nullptr;
  for (const auto& [name, entry] : order) {
    if (entry->begin < covered) {
      return invalid("tensor '", Printable(name), "' overlaps tensor '", Printable(*previous), "'");
    }
    if (entry->begin > covered) {
      return invalid("tensor '", Printable(name), "': ", entry->begin - covered,
                     " bytes before it belong to no tensor");
    }
    covered = entry->end;
    previous = &name;
    names_.push_back(name);
  }
  if (covered != data_bytes) {
    return invalid(data_bytes - covered, " bytes at the end belong to no tensor");
  }
  return absl::OkStatus();
}

const TensorInfo* SafetensorsReader::Find(absl::string_view name) const {
  const auto it = entries_.find(name);
  return it == entries_.end() ? nullptr : &it->second.info;
}

SafetensorsReader::RawTensor SafetensorsReader::Raw(absl::string_view name) const {
  const auto it = entries_.find(name);
  if (it == entries_.end()) return {};
  RawTensor raw;
  raw.file_offset = data_begin_ + it->second.begin;
  raw.data = data_ + raw.file_offset;
  raw.num_bytes = it->second.end - it->second.begin;
  return raw;
}

absl::Status SafetensorsReader::ReadFloat(absl::string_view name, std::int64_t first, std::int64_t count,
                                          float* out) const {
  const TensorInfo* info = Find(name);
  QST_RETURN_IF_ERROR(CheckReadRange(info, path_, name, first, count));
  if (count == 0) return absl::OkStatus();
  const std::uint8_t* data = Raw(name).data;
  // Byte-wise loads: the format does not promise aligned tensors.
  const auto convert16 = [&](auto to_float) {
    const std::uint8_t* source = data + first * 2;
    for (std::int64_t i = 0; i < count; ++i) {
      std::uint16_t bits;
      std::memcpy(&bits, source + i * 2, 2);
      out[i] = to_float(bits);
    }
  };
  if (info->dtype == DType::kF32) {
    std::memcpy(out, data + first * 4, static_cast<std::size_t>(count) * 4);
  } else if (info->dtype == DType::kF16) {
    convert16(F16ToF32);
  } else if (info->dtype == DType::kBF16) {
    convert16(BF16ToF32);
  } else if (info->encoding == "F64") {
    return NarrowFloat64(data + first * 8, first, count, path_, name, out);
  } else {
    return absl::UnimplementedError(absl::StrCat(path_, ": tensor '", name, "' has dtype ", info->encoding,
                                                 "; weights are read from F32, F16, BF16 and F64"));
  }
  return absl::OkStatus();
}

absl::Status SafetensorsReader::ReadBytes(absl::string_view name, std::int64_t first, std::int64_t count,
                                          void* out) const {
  QST_RETURN_IF_ERROR(CheckReadRange(Find(name), path_, name, 0, 0));
  const RawTensor raw = Raw(name);
  QST_RETURN_IF_ERROR(CheckByteRange(static_cast<std::int64_t>(raw.num_bytes), path_, name, first, count));
  if (count > 0) std::memcpy(out, raw.data + first, static_cast<std::size_t>(count));
  return absl::OkStatus();
}

void SafetensorsReader::Release(absl::string_view name) const {
  const RawTensor raw = Raw(name);
  if (file_ != nullptr && raw.data != nullptr) file_->DontNeed(raw.file_offset, raw.num_bytes);
}

}  // namespace qst
