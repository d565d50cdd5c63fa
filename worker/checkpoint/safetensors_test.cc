// Writer and reader together, and the reader against broken and hostile files.
#include <cstdint>
#include <filesystem>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "proto/support/status_matchers.h"
#include "worker/checkpoint/safetensors_reader.h"
#include "worker/checkpoint/safetensors_writer.h"
#include "worker/checkpoint/test_files.h"

namespace qst {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

absl::Status OpenBytes(const std::string& bytes) {
  return SafetensorsReader::FromMemory(reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size(),
                                       "m.safetensors")
      .status();
}

TEST(SafetensorsTest, WhatIsWrittenIsRead) {
  TempFolder folder;
  const std::string path = folder.Path("a.safetensors");
  const std::vector<float> floats = {1.5f, -2.0f, 0.25f, 3e38f, 0.0f, -0.0f};
  const std::vector<std::uint16_t> halves = {0x3c00, 0xc000, 0x7bff};  // 1, -2, 65504
  const std::vector<std::uint16_t> brains = {0x3f80, 0xc000, 0x0001};  // 1, -2, 2^-133
  const std::vector<std::uint8_t> bytes = {0, 7, 255};
  QST_ASSERT_OK(WriteSafetensors(path,
                                 {{"f", DType::kF32, {2, 3}, floats.data()},
                                  {"h", DType::kF16, {3}, halves.data()},
                                  {"b", DType::kBF16, {1, 3}, brains.data()},
                                  {"u", DType::kU8, {3, 1}, bytes.data()},
                                  {"none", DType::kF32, {0, 4}, nullptr}},
                                 {{"format", "pt"}, {"note", "\"quoted\" \n"}}));
  const auto reader = SafetensorsReader::Open(path);
  QST_ASSERT_OK(reader);
  EXPECT_THAT((*reader)->names(), ElementsAre("f", "h", "b", "u", "none"));
  EXPECT_EQ((*reader)->metadata().at("note"), "\"quoted\" \n");
  EXPECT_EQ((*reader)->Find("f")->shape, (std::vector<std::int64_t>{2, 3}));
  EXPECT_EQ((*reader)->Find("b")->dtype, DType::kBF16);
  EXPECT_EQ((*reader)->Find("none")->num_elems, 0);
  EXPECT_EQ((*reader)->Find("absent"), nullptr);

  std::vector<float> out(6, 9.0f);
  QST_ASSERT_OK((*reader)->ReadFloat("f", 0, 6, out.data()));
  EXPECT_EQ(out, floats);
  QST_ASSERT_OK((*reader)->ReadFloat("f", 4, 1, out.data()));
  EXPECT_EQ(out[0], 0.0f);
  QST_ASSERT_OK((*reader)->ReadFloat("h", 1, 2, out.data()));
  EXPECT_EQ(out[0], -2.0f);
  EXPECT_EQ(out[1], 65504.0f);
  (*reader)->Release("b");
  QST_ASSERT_OK((*reader)->ReadFloat("b", 2, 1, out.data()));
  EXPECT_EQ(out[0], 0x1p-133f);
  const auto raw = (*reader)->Raw("u");
  EXPECT_EQ(std::vector<std::uint8_t>(raw.data, raw.data + raw.num_bytes), bytes);
  EXPECT_EQ((*reader)->Raw("absent").data, nullptr);
}

TEST(SafetensorsTest, TensorDataStartAligned) {
  TempFolder folder;
  for (const char* name : {"a", "some name", "a rather long name of a tensor, so that the header grows"}) {
    const std::uint8_t byte = 42;
    const std::string path = folder.Path("x");
    QST_ASSERT_OK(WriteSafetensors(path, {{name, DType::kU8, {1}, &byte}}, {}));
    const auto reader = SafetensorsReader::Open(path);
    QST_ASSERT_OK(reader);
    EXPECT_EQ((*reader)->Raw(name).file_offset % 64, 0u);
    EXPECT_EQ(*(*reader)->Raw(name).data, 42);
  }
}

TEST(SafetensorsTest, ReadingOutsideATensorIsRefused) {
  const std::string bytes = SafetensorsFile(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
                                            R"("i":{"dtype":"I64","shape":[1],"data_offsets":[4,12]}})",
                                            std::string(12, '\0'));
  const auto reader =
      SafetensorsReader::FromMemory(reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size(), "m");
  QST_ASSERT_OK(reader);
  float out[4];
  EXPECT_THAT((*reader)->ReadFloat("b", 0, 1, out), StatusIs(absl::StatusCode::kNotFound, HasSubstr("'b'")));
  EXPECT_THAT((*reader)->ReadFloat("a", 0, 2, out), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("'a'")));
  EXPECT_THAT((*reader)->ReadFloat("a", -1, 1, out), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT((*reader)->ReadFloat("a", 1, std::numeric_limits<std::int64_t>::max(), out),
              StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT((*reader)->ReadFloat("i", 0, 1, out), StatusIs(absl::StatusCode::kUnimplemented, HasSubstr("I64")));
}

TEST(SafetensorsTest, WriterRefusesWhatReadersWould) {
  TempFolder folder;
  const float x = 1.0f;
  const std::string path = folder.Path("a");
  const SafetensorsEntry good = {"a", DType::kF32, {1}, &x};
  EXPECT_THAT(WriteSafetensors(path, {good, good}, {}), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("'a'")));
  EXPECT_THAT(WriteSafetensors(path, {{"", DType::kF32, {1}, &x}}, {}), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(WriteSafetensors(path, {{"__metadata__", DType::kF32, {1}, &x}}, {}),
              StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(WriteSafetensors(path, {{"a", DType::kF32, {-1}, &x}}, {}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("shape")));
  EXPECT_THAT(WriteSafetensors(path, {{"a", DType::kF32, {1ll << 40, 1ll << 40}, &x}}, {}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("shape")));
  EXPECT_THAT(WriteSafetensors(path, {{"\xff", DType::kF32, {1}, &x}}, {}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("UTF-8")));
  EXPECT_FALSE(std::filesystem::exists(path));
}

TEST(SafetensorsTest, StreamWriterNeedsExactlyTheAnnouncedBytes) {
  TempFolder folder;
  const std::string path = folder.Path("a");
  const std::vector<float> x = {1.0f, 2.0f, 3.0f};
  StreamDigest digest;
  auto writer = SafetensorsStreamWriter::Create(path, {{"a", DType::kF32, {2}, nullptr}}, {}, &digest);
  QST_ASSERT_OK(writer);
  EXPECT_THAT((*writer)->Append(x.data(), 12), StatusIs(absl::StatusCode::kFailedPrecondition));
  QST_ASSERT_OK((*writer)->Append(x.data(), 4));
  EXPECT_THAT((*writer)->Finish(), StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("4 bytes")));
  QST_ASSERT_OK((*writer)->Append(x.data() + 1, 4));
  QST_ASSERT_OK((*writer)->Finish());
  const std::string contents = ReadFile(path);
  EXPECT_EQ((*writer)->file_bytes(), contents.size());
  Sha256 sha256;
  sha256.Update(contents.data(), contents.size());
  EXPECT_EQ(digest.Finish().sha256, sha256.HexDigest());
}

struct BrokenFile {
  const char* what;
  std::string bytes;
  absl::StatusCode code;
  const char* message;
};

std::vector<BrokenFile> BrokenFiles() {
  const auto kInvalid = absl::StatusCode::kInvalidArgument;
  const auto kCut = absl::StatusCode::kDataLoss;
  const std::string four(4, '\0');
  const std::string eight(8, '\0');
  const auto one = [&](const std::string& fields, const std::string& data) {
    return SafetensorsFile("{\"a\":{" + fields + "}}", data);
  };
  return {
      {"empty", "", kCut, "cut short"},
      {"cut within the length", "\x10\0\0", kCut, "cut short"},
      {"cut within the header", Bytes<std::uint64_t>(100) + "{\"a\":", kCut, "the header is 100 bytes long"},
      {"absurd header length", Bytes<std::uint64_t>(~0ull) + "{}", kInvalid, "not a safetensors file"},
      {"header is not JSON", SafetensorsFile("{\"a\":", ""), kInvalid, "not a JSON object"},
      {"header is a list", SafetensorsFile("[]", ""), kInvalid, "not a JSON object"},
      {"header nested too deep",
       SafetensorsFile("{\"a\":" + std::string(100'000, '[') + std::string(100'000, ']') + "}", ""), kInvalid,
       "tensor 'a'"},
      {"header unclosed brackets", SafetensorsFile(std::string(100'000, '['), ""), kInvalid, "not a JSON object"},
      {"header not UTF-8", SafetensorsFile("{\"\xff\":{}}", ""), kInvalid, "not a JSON object"},
      {"metadata not strings", SafetensorsFile(R"({"__metadata__":{"k":1}})", ""), kInvalid, "'k' is not a string"},
      {"metadata not an object", SafetensorsFile(R"({"__metadata__":3})", ""), kInvalid, "__metadata__"},
      {"tensor is a number", SafetensorsFile(R"({"a":7})", ""), kInvalid, "tensor 'a': needs a dtype"},
      {"no dtype", one(R"("shape":[1],"data_offsets":[0,4])", four), kInvalid, "tensor 'a': needs a dtype"},
      {"no shape", one(R"("dtype":"F32","data_offsets":[0,4])", four), kInvalid, "tensor 'a': needs a dtype"},
      {"three offsets", one(R"("dtype":"F32","shape":[1],"data_offsets":[0,4,4])", four), kInvalid, "two data_offsets"},
      {"unknown dtype", one(R"("dtype":"F31","shape":[1],"data_offsets":[0,4])", four),
       absl::StatusCode::kUnimplemented, "'F31'"},
      {"negative dimension", one(R"("dtype":"F32","shape":[-1],"data_offsets":[0,4])", four), kInvalid,
       "tensor 'a': dimensions"},
      {"fractional dimension", one(R"("dtype":"F32","shape":[1.5],"data_offsets":[0,4])", four), kInvalid,
       "tensor 'a': dimensions"},
      {"huge dimension", one(R"("dtype":"F32","shape":[18446744073709551615],"data_offsets":[0,4])", four), kInvalid,
       "tensor 'a': dimensions"},
      {"huge count", one(R"("dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4])", four), kInvalid,
       "more elements than can be counted"},
      {"huge bytes", one(R"("dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,4])", four), kInvalid,
       "more elements than can be counted"},
      {"many dimensions",
       one(R"("dtype":"F32","shape":[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1],"data_offsets":[0,4])", four), kInvalid,
       "17 dimensions"},
      {"backwards", one(R"("dtype":"F32","shape":[1],"data_offsets":[4,0])", four), kInvalid, "run backwards"},
      {"negative offset", one(R"("dtype":"F32","shape":[1],"data_offsets":[-4,0])", four), kInvalid, "whole numbers"},
      {"size mismatch", one(R"("dtype":"F32","shape":[2],"data_offsets":[0,4])", four), kInvalid,
       "hold 4 bytes, dtype and shape need 8"},
      {"past the end", one(R"("dtype":"F32","shape":[2],"data_offsets":[0,8])", four), kCut, "tensor 'a': cut short"},
      {"far past the end",
       one(R"("dtype":"U8","shape":[1],"data_offsets":[18446744073709551614,18446744073709551615])", four), kCut,
       "tensor 'a': cut short"},
      {"bytes left over", one(R"("dtype":"F32","shape":[1],"data_offsets":[0,4])", eight), kInvalid,
       "4 bytes at the end"},
      {"hole at the start", one(R"("dtype":"F32","shape":[1],"data_offsets":[4,8])", eight), kInvalid,
       "4 bytes before it"},
      {"overlap",
       SafetensorsFile(
           R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[2,6]}})",
           std::string(6, '\0')),
       kInvalid, "'b' overlaps tensor 'a'"},
      {"same bytes twice",
       SafetensorsFile(
           R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})",
           four),
       kInvalid, "overlaps"},
      {"hole between",
       SafetensorsFile(
           R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}})",
           std::string(3, '\0')),
       kInvalid, "tensor 'b': 1 bytes before it"},
      {"name twice",
       SafetensorsFile(
           R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
           eight),
       kInvalid, "two tensors are named 'a'"},
  };
}

TEST(SafetensorsTest, BrokenFilesAreRefusedInOneClearLine) {
  for (const BrokenFile& broken : BrokenFiles()) {
    const absl::Status status = OpenBytes(broken.bytes);
    EXPECT_THAT(status, StatusIs(broken.code, HasSubstr(broken.message))) << broken.what;
    EXPECT_THAT(std::string(status.message()), HasSubstr("m.safetensors")) << broken.what;
    EXPECT_EQ(status.message().find('\n'), absl::string_view::npos) << broken.what;
  }
}

TEST(SafetensorsTest, ControlCharactersOfNamesDoNotReachMessages) {
  const absl::Status status = OpenBytes(SafetensorsFile("{\"a\\n\\u001b[31m\":7}", ""));
  EXPECT_THAT(status, StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("a\\n\\x1b[31m")));
}

TEST(SafetensorsTest, EveryCutOfAGoodFileIsRefused) {
  const std::string good = SafetensorsFile(
      R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"U8","shape":[3],"data_offsets":[8,11]}})",
      std::string(11, '\1'));
  QST_ASSERT_OK(OpenBytes(good));
  for (std::size_t length = 0; length < good.size(); ++length) {
    EXPECT_THAT(OpenBytes(good.substr(0, length)), StatusIs(absl::StatusCode::kDataLoss)) << length;
  }
}

}  // namespace
}  // namespace qst
