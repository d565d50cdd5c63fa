// Testonly: temporary folders, and byte-exact building of files, broken ones included.
#ifndef QST_WORKER_CHECKPOINT_TEST_FILES_H_
#define QST_WORKER_CHECKPOINT_TEST_FILES_H_

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "gtest/gtest.h"

namespace qst {

// An empty folder of the running test, removed again at its end.
class TempFolder {
 public:
  TempFolder() {
    const char* root = std::getenv("TEST_TMPDIR");
    std::string pattern = std::string(root != nullptr ? root : "/tmp") + "/checkpoint_XXXXXX";
    path_ = ::mkdtemp(pattern.data());
  }
  ~TempFolder() {
    std::error_code error;
    std::filesystem::remove_all(path_, error);
  }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;

  const std::string& path() const { return path_; }
  std::string Path(const std::string& name) const { return path_ + "/" + name; }
  std::string Write(const std::string& name, const std::string& contents) const {
    std::ofstream(Path(name), std::ios::binary) << contents;
    return Path(name);
  }

 private:
  std::string path_;
};

inline std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  EXPECT_TRUE(file.good()) << path;
  return std::string(std::istreambuf_iterator<char>(file), {});
}

// A number as its bytes, little endian.
template <typename T>
std::string Bytes(T value) {
  std::string bytes(sizeof(T), '\0');
  std::memcpy(bytes.data(), &value, sizeof(T));
  return bytes;
}

// A safetensors file: header length, header, data.
inline std::string SafetensorsFile(const std::string& header, const std::string& data) {
  return Bytes<std::uint64_t>(header.size()) + header + data;
}

// Writes GGUF piece by piece, with no check of sense.
class GgufBuilder {
 public:
  static std::string String(const std::string& text) { return Bytes<std::uint64_t>(text.size()) + text; }

  GgufBuilder& Raw(const std::string& key, std::uint32_t type, const std::string& value) {
    metadata_ += String(key) + Bytes(type) + value;
    ++num_metadata_;
    return *this;
  }
  GgufBuilder& Text(const std::string& key, const std::string& value) { return Raw(key, 8, String(value)); }
  GgufBuilder& Int(const std::string& key, std::uint32_t value) { return Raw(key, 4, Bytes(value)); }
  GgufBuilder& Float(const std::string& key, float value) { return Raw(key, 6, Bytes(value)); }
  GgufBuilder& Texts(const std::string& key, const std::vector<std::string>& values) {
    std::string bytes = Bytes<std::uint32_t>(8) + Bytes<std::uint64_t>(values.size());
    for (const std::string& value : values) bytes += String(value);
    return Raw(key, 9, bytes);
  }
  // Dimensions fastest first.
  GgufBuilder& Tensor(const std::string& name, const std::vector<std::uint64_t>& dims, std::uint32_t type,
                      std::uint64_t offset) {
    tensors_ += String(name) + Bytes<std::uint32_t>(static_cast<std::uint32_t>(dims.size()));
    for (const std::uint64_t dim : dims) tensors_ += Bytes(dim);
    tensors_ += Bytes(type) + Bytes(offset);
    ++num_tensors_;
    return *this;
  }
  GgufBuilder& Version(std::uint32_t version) {
    version_ = version;
    return *this;
  }
  std::string Build(const std::string& data) const { return Build(data, num_tensors_, num_metadata_); }
  std::string Build(const std::string& data, std::uint64_t num_tensors, std::uint64_t num_metadata) const {
    std::string file = "GGUF" + Bytes(version_) + Bytes(num_tensors) + Bytes(num_metadata) + metadata_ + tensors_;
    file.append((32 - file.size() % 32) % 32, '\0');
    return file + data;
  }

 private:
  std::uint32_t version_ = 3;
  std::uint64_t num_metadata_ = 0;
  std::uint64_t num_tensors_ = 0;
  std::string metadata_;
  std::string tensors_;
};

}  // namespace qst

#endif  // QST_WORKER_CHECKPOINT_TEST_FILES_H_
