// The zip container of torch.save: members are stored, not compressed, and aligned, so that they can be used where they
// lie. Source: PKWARE's APPNOTE (end of central directory, zip64).
#include <cstring>

#include "absl/strings/str_cat.h"
#include "proto/support/status_macros.h"
#include "worker/checkpoint/torch_file.h"

namespace qst {
namespace {

constexpr std::uint32_t kLocalHeader = 0x04034b50;
constexpr std::uint32_t kDirectoryEntry = 0x02014b50;
constexpr std::uint32_t kEndOfDirectory = 0x06054b50;
constexpr std::uint32_t kZip64EndOfDirectory = 0x06064b50;
constexpr std::uint32_t kZip64Locator = 0x07064b50;
constexpr std::uint64_t kLocalHeaderBytes = 30;
constexpr std::uint64_t kDirectoryEntryBytes = 46;
constexpr std::uint64_t kEndBytes = 22;
constexpr std::uint64_t kZip64EndBytes = 56;
constexpr std::uint64_t kLocatorBytes = 20;
constexpr std::uint64_t kMaxCommentBytes = 65535;
constexpr std::uint16_t kZip64Extra = 1;
constexpr std::uint32_t kIn64 = 0xffffffffu;  // "see the zip64 field"
constexpr std::uint64_t kMaxMembers = 4 << 20;

template <typename T>
T Load(const std::uint8_t* at) {
  T value;
  std::memcpy(&value, at, sizeof(value));
  return value;
}

}  // namespace

absl::StatusOr<std::map<std::string, TorchFile::Bytes>> TorchFile::ReadZipDirectory() const {
  const auto broken = [&](const auto&... parts) {
    return absl::InvalidArgumentError(absl::StrCat(path_, ": not a whole zip archive: ", parts...));
  };
  const auto fits = [&](std::uint64_t offset, std::uint64_t bytes) { return offset <= size_ && bytes <= size_ - offset; };

  // The end record is the last thing in the file, but for a comment.
  if (size_ < kEndBytes) return absl::DataLossError(absl::StrCat(path_, ": cut short: ", size_, " bytes"));
  std::uint64_t end = size_ - kEndBytes;
  const std::uint64_t lowest = end > kMaxCommentBytes ? end - kMaxCommentBytes : 0;
  while (Load<std::uint32_t>(data_ + end) != kEndOfDirectory) {
    if (end == lowest) {
      return absl::DataLossError(absl::StrCat(path_, ": cut short: a zip archive without its directory at the end"));
    }
    --end;
  }
  std::uint64_t num_members = Load<std::uint16_t>(data_ + end + 10);
  std::uint64_t directory = Load<std::uint32_t>(data_ + end + 16);
  if (end >= kLocatorBytes && Load<std::uint32_t>(data_ + end - kLocatorBytes) == kZip64Locator) {
    const std::uint64_t end64 = Load<std::uint64_t>(data_ + end - kLocatorBytes + 8);
    if (!fits(end64, kZip64EndBytes) || Load<std::uint32_t>(data_ + end64) != kZip64EndOfDirectory) {
      return broken("its zip64 directory is not where it should be");
    }
    num_members = Load<std::uint64_t>(data_ + end64 + 32);
    directory = Load<std::uint64_t>(data_ + end64 + 48);
  }
  if (num_members > kMaxMembers) return broken(num_members, " members");

  std::map<std::string, Bytes> members;
  std::uint64_t at = directory;
  for (std::uint64_t i = 0; i < num_members; ++i) {
    if (!fits(at, kDirectoryEntryBytes) || Load<std::uint32_t>(data_ + at) != kDirectoryEntry) {
      return broken("member ", i, " of ", num_members, " is not in its directory");
    }
    const std::uint8_t* const entry = data_ + at;
    const std::uint16_t method = Load<std::uint16_t>(entry + 10);
    std::uint64_t stored_bytes = Load<std::uint32_t>(entry + 20);
    std::uint64_t real_bytes = Load<std::uint32_t>(entry + 24);
    const std::uint64_t name_bytes = Load<std::uint16_t>(entry + 28);
    const std::uint64_t extra_bytes = Load<std::uint16_t>(entry + 30);
    const std::uint64_t comment_bytes = Load<std::uint16_t>(entry + 32);
    std::uint64_t local = Load<std::uint32_t>(entry + 42);
    if (!fits(at, kDirectoryEntryBytes + name_bytes + extra_bytes + comment_bytes)) {
      return broken("member ", i, " of ", num_members, " runs past the end");
    }
    std::string name(reinterpret_cast<const char*>(entry + kDirectoryEntryBytes), name_bytes);
    // Sizes beyond 32 bits are in an extra field, those that are needed, in this order.
    const std::uint8_t* extra = entry + kDirectoryEntryBytes + name_bytes;
    const std::uint8_t* const extra_end = extra + extra_bytes;
    while (extra_end - extra >= 4) {
      const std::uint16_t id = Load<std::uint16_t>(extra);
      const std::uint16_t bytes = Load<std::uint16_t>(extra + 2);
      extra += 4;
      if (bytes > extra_end - extra) return broken("member ", i, " has a broken extra field");
      if (id == kZip64Extra) {
        const std::uint8_t* field = extra;
        for (std::uint64_t* value : {&real_bytes, &stored_bytes, &local}) {
          if (*value != kIn64) continue;
          if (extra + bytes - field < 8) return broken("member ", i, " has a broken zip64 field");
          *value = Load<std::uint64_t>(field);
          field += 8;
        }
      }
      extra += bytes;
    }
    if (method != 0) {
      return absl::UnimplementedError(
          absl::StrCat(path_, ": member ", i, " is compressed (method ", method, "); torch.save does not do that"));
    }
    if (!fits(local, kLocalHeaderBytes) || Load<std::uint32_t>(data_ + local) != kLocalHeader) {
      return broken("member ", i, " is not where its directory says");
    }
    Bytes place;
    place.offset = local + kLocalHeaderBytes + Load<std::uint16_t>(data_ + local + 26) +
                   Load<std::uint16_t>(data_ + local + 28);
    place.size = real_bytes;
    if (stored_bytes != real_bytes || !fits(place.offset, place.size)) {
      return absl::DataLossError(absl::StrCat(path_, ": cut short: member ", i, " of ", num_members, " has ",
                                              real_bytes, " bytes from byte ", place.offset, ", the file has ", size_));
    }
    if (!members.emplace(std::move(name), place).second) return broken("two members have one name");
    at += kDirectoryEntryBytes + name_bytes + extra_bytes + comment_bytes;
  }
  return members;
}

}  // namespace qst
