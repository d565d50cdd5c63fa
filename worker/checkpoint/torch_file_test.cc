#include "worker/checkpoint/torch_file.h"

#include <cstdint>
#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/support/status_matchers.h"

namespace qst {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string TestFile(const std::string& name) { return "worker/checkpoint/testdata/torch/" + name; }

std::string ReadFile(const std::string& name) {
  std::ifstream in(TestFile(name), std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>());
}

absl::StatusOr<std::unique_ptr<TorchFile>> FromBytes(const std::string& bytes) {
  return TorchFile::FromMemory(reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size(), "test.bin");
}

// As make_golden.py fills tensors: element i of a contiguous one.
float Value(int i) { return static_cast<float>(i * 7 % 31 - 15) / 8.0f; }

std::vector<float> Values(int n) {
  std::vector<float> values(n);
  for (int i = 0; i < n; ++i) values[i] = Value(i);
  return values;
}

std::vector<float> ReadAll(const TorchFile& file, const std::string& name) {
  const TensorInfo* info = file.Find(name);
  EXPECT_NE(info, nullptr) << name;
  if (info == nullptr) return {};
  std::vector<float> values(info->num_elems);
  QST_EXPECT_OK(file.ReadFloat(name, 0, info->num_elems, values.data()));
  return values;
}

class TorchFileTest : public ::testing::TestWithParam<const char*> {};

TEST_P(TorchFileTest, TensorsOfEveryKindAreRead) {
  const auto opened = TorchFile::Open(TestFile(GetParam()));
  QST_ASSERT_OK(opened);
  const TorchFile& file = **opened;
  EXPECT_THAT(file.names(), ElementsAre("f32", "f16", "bf16", "f64", "ids", "scalar", "empty", "parameter", "transposed",
                                        "columns", "tied"));
  EXPECT_THAT(file.Find("f32")->shape, ElementsAre(3, 5));
  EXPECT_EQ(file.Find("f32")->dtype, DType::kF32);
  EXPECT_EQ(file.Find("bf16")->dtype, DType::kBF16);
  EXPECT_EQ(file.Find("f64")->encoding, "F64");
  EXPECT_TRUE(file.Find("scalar")->shape.empty());
  EXPECT_EQ(file.Find("empty")->num_elems, 0);
  EXPECT_EQ(ReadAll(file, "f32"), Values(15));
  EXPECT_EQ(ReadAll(file, "tied"), Values(15));
  EXPECT_EQ(ReadAll(file, "f16"), Values(8));
  EXPECT_EQ(ReadAll(file, "bf16"), Values(7));
  EXPECT_EQ(ReadAll(file, "f64"), Values(4));
  EXPECT_EQ(ReadAll(file, "scalar"), Values(1));
  EXPECT_EQ(ReadAll(file, "parameter"), Values(6));
}

TEST_P(TorchFileTest, ViewsAreReadThroughTheirStrides) {
  const auto file = TorchFile::Open(TestFile(GetParam()));
  QST_ASSERT_OK(file);
  std::vector<float> transposed;
  for (int i = 0; i < 3; ++i) {
    for (int j = 0; j < 4; ++j) transposed.push_back(Value(j * 3 + i));
  }
  EXPECT_EQ(ReadAll(**file, "transposed"), transposed);
  std::vector<float> columns;
  for (int i = 1; i < 5; ++i) {
    for (int j = 2; j < 7; j += 2) columns.push_back(Value(i * 8 + j));
  }
  EXPECT_EQ(ReadAll(**file, "columns"), columns);
  // Any range of them.
  for (int first = 0; first < 12; ++first) {
    std::vector<float> part(12 - first);
    QST_ASSERT_OK((*file)->ReadFloat("columns", first, 12 - first, part.data()));
    EXPECT_EQ(part, std::vector<float>(columns.begin() + first, columns.end()));
  }
}

TEST_P(TorchFileTest, ReadsOutsideATensorAndOfIntegersAreRefused) {
  const auto file = TorchFile::Open(TestFile(GetParam()));
  QST_ASSERT_OK(file);
  std::vector<float> out(32);
  EXPECT_THAT((*file)->ReadFloat("nobody", 0, 1, out.data()), StatusIs(absl::StatusCode::kNotFound));
  EXPECT_THAT((*file)->ReadFloat("f32", 10, 6, out.data()), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT((*file)->ReadFloat("ids", 0, 1, out.data()), StatusIs(absl::StatusCode::kUnimplemented, HasSubstr("I64")));
}

// Whatever is missing at the end is noticed, and nothing that comes before is believed.
TEST_P(TorchFileTest, EveryTruncationIsAnError) {
  const std::string whole = ReadFile(GetParam());
  ASSERT_GT(whole.size(), 1000u);
  for (std::size_t size = 0; size < whole.size(); ++size) {
    EXPECT_FALSE(FromBytes(whole.substr(0, size)).ok()) << size;
  }
}

INSTANTIATE_TEST_SUITE_P(Formats, TorchFileTest, ::testing::Values("zip.bin", "legacy.bin", "nested.bin"),
                         [](const auto& info) {
                           const std::string name = info.param;
                           return name.substr(0, name.find('.'));
                         });

TEST(TorchFileAttackTest, CallablesThatTensorsAreNotMadeOfAreRefusedByName) {
  // os.system is posix.system where pickles come from.
  EXPECT_THAT(TorchFile::Open(TestFile("os_system.bin")),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("asks for 'posix.system'")));
  EXPECT_THAT(TorchFile::Open(TestFile("eval_legacy.bin")),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("asks for '__builtin__.eval'")));
  const std::string pickle = "\x80\x02" "cos\nsystem\n(U\x04" "true" "tR.";
  EXPECT_THAT(TorchPickle::Read(pickle, "p"),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("asks for 'os.system'")));
}

TEST(TorchFileErrorTest, FilesOfOtherKindsSayWhatTheyAreNot) {
  EXPECT_THAT(FromBytes("hello"), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("not written by torch.save")));
  EXPECT_THAT(TorchFile::Open(TestFile("no_tensors.bin")),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("holds no dictionary of tensors")));
  EXPECT_THAT(TorchFile::Open(TestFile("absent.bin")), StatusIs(absl::StatusCode::kNotFound));
}

TEST(TorchFileErrorTest, TensorsThatLeaveTheirStorageAreRefused) {
  // The shape (3, 5) of "f32" in the pickle: BININT1 3, BININT1 5, TUPLE2. It becomes (3, 6).
  std::string bytes = ReadFile("zip.bin");
  const std::size_t at = bytes.find("K\x03K\x05\x86");
  ASSERT_NE(at, std::string::npos);
  bytes[at + 3] = 6;
  EXPECT_THAT(FromBytes(bytes), StatusIs(absl::StatusCode::kInvalidArgument,
                                         HasSubstr("tensor 'f32': reaches beyond the 15 elements of its storage")));
}

TEST(TorchFileViewTest, StridesOfDimensionsOfOneAreAnyNumber) {
  // A legacy file of eight floats, of which a tensor of shape (2, 1, 2) takes every second one.
  std::string bytes = "\x80\x02\x8a\x0al\xfc\x9c\x46\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.}.";
  bytes += "}Vt\nctorch._utils\n_rebuild_tensor_v2\n((Vstorage\nctorch\nFloatStorage\nV0\nVcpu\nI8\ntQ"
           "I0\n(I2\nI1\nI2\nt(I4\nI9223372036854775807\nI2\nttRs.]V0\na.";
  bytes += std::string("\x08\0\0\0\0\0\0\0", 8);
  for (int i = 0; i < 8; ++i) {
    const float value = Value(i);
    bytes.append(reinterpret_cast<const char*>(&value), sizeof(value));
  }
  const auto file = FromBytes(bytes);
  QST_ASSERT_OK(file);
  EXPECT_THAT((*file)->Find("t")->shape, ElementsAre(2, 1, 2));
  EXPECT_THAT(ReadAll(**file, "t"), ElementsAre(Value(0), Value(2), Value(4), Value(6)));
}

TEST(TorchPickleTest, ContainersThatHoldThemselvesDoNoHarm) {
  // A list that is remembered and appended to itself.
  EXPECT_TRUE(TorchPickle::Read("\x80\x02]q\x01h\x01" "a.", "p").ok());
}

TEST(TorchPickleTest, BrokenProgramsAreErrors) {
  for (const char* text : {".", "(.", "a.", "N0.", "t.", "NNs.", "h\x05.", "]Ns.", "R.", "NR.", "Q.", "NQ.", "b.", "Ib\n."}) {
    EXPECT_THAT(TorchPickle::Read(text, "p"), StatusIs(absl::StatusCode::kInvalidArgument)) << text;
  }
  EXPECT_THAT(TorchPickle::Read("\x80\x02", "p"), StatusIs(absl::StatusCode::kDataLoss));
  EXPECT_THAT(TorchPickle::Read("X\xff\xff\xff\xff", "p"), StatusIs(absl::StatusCode::kDataLoss));
  EXPECT_THAT(TorchPickle::Read("\x82\x01.", "p"), StatusIs(absl::StatusCode::kUnimplemented));
}

}  // namespace
}  // namespace qst
