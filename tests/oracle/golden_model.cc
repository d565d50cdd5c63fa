#include "tests/oracle/golden_model.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "gtest/gtest.h"
#include "kernels/device.h"
#include "kernels/ops.h"
#include "proto/support/status_matchers.h"
#include "worker/backbone/stage.h"
#include "worker/checkpoint/import_model.h"
#include "worker/checkpoint/safetensors_reader.h"
#include "worker/host_frozen.h"
#include "worker/side/head.h"
#include "worker/testing/tiny_model.h"

namespace qst {
namespace {

namespace fs = std::filesystem;

// What the other program computed.
struct Expected {
  std::vector<std::int32_t> tokens;
  std::vector<float> hidden_states;  // [N + 1, T, d]
  std::vector<float> logits;         // [T, V]
};

Expected ReadExpected(const std::string& folder) {
  Expected expected;
  const auto reader = SafetensorsReader::Open(absl::StrCat(folder, "/", kExpectedFile));
  QST_EXPECT_OK(reader);
  const SafetensorsReader::RawTensor tokens = (*reader)->Raw("tokens");
  expected.tokens.resize(tokens.num_bytes / sizeof(std::int32_t));
  std::memcpy(expected.tokens.data(), tokens.data, tokens.num_bytes);
  for (const auto& [name, values] :
       {std::pair<const char*, std::vector<float>*>{"hidden_states", &expected.hidden_states},
        {"logits", &expected.logits}}) {
    values->resize(static_cast<std::size_t>((*reader)->Find(name)->num_elems));
    QST_EXPECT_OK((*reader)->ReadFloat(name, 0, (*reader)->Find(name)->num_elems, values->data()));
  }
  return expected;
}

// The largest errors over all rows. NaN counts as infinite.
struct Errors {
  double row = 0.0;
  double element = 0.0;
};

void AddErrors(const float* expected, const std::vector<float>& actual, std::int64_t width, Errors* errors) {
  const auto raise = [](double error, double* largest) {
    *largest = std::isnan(error) ? std::numeric_limits<double>::infinity() : std::max(*largest, error);
  };
  for (std::size_t row = 0; row < actual.size(); row += static_cast<std::size_t>(width)) {
    double squares = 0.0;
    double squared_errors = 0.0;
    for (std::int64_t j = 0; j < width; ++j) {
      const double difference = static_cast<double>(actual[row + j]) - expected[row + j];
      squares += static_cast<double>(expected[row + j]) * expected[row + j];
      squared_errors += difference * difference;
    }
    raise(std::sqrt(squared_errors / squares), &errors->row);
    const double rms = std::sqrt(squares / static_cast<double>(width));
    for (std::int64_t j = 0; j < width; ++j) {
      const double difference = std::abs(static_cast<double>(actual[row + j]) - expected[row + j]);
      raise(difference / std::max<double>(std::abs(expected[row + j]), rms), &errors->element);
    }
  }
}

}  // namespace

std::vector<std::string> GoldenFolders(const std::string& root) {
  std::vector<std::string> folders;
  for (const fs::directory_entry& entry : fs::directory_iterator(root)) folders.push_back(entry.path());
  std::sort(folders.begin(), folders.end());
  return folders;
}

std::vector<std::string> GoldenFoldersOf(const char* variable) {
  const char* const folders = std::getenv(variable);
  if (folders == nullptr) return {};
  return absl::StrSplit(folders, ':', absl::SkipEmpty());
}

std::unique_ptr<StoredModel> GoldenModelTest::Import(const std::string& folder,
                                                     const std::optional<StoreQuantization>& quantization) {
  const std::string source = MakeTestFolder("source");
  fs::copy(folder, source, fs::copy_options::recursive);
  if (!fs::exists(source + "/tokenizer.json")) QST_EXPECT_OK(WriteTinyTokenizer(source));
  ImportOptions options;
  options.source = source;
  options.destination = MakeTestFolder("store") + "/model";
  options.quantization = quantization;
  QST_EXPECT_OK(ImportModel(options, nullptr));
  auto stored = StoredModel::Open(options.destination);
  QST_EXPECT_OK(stored);
  return *std::move(stored);
}

// By layers cut into stages of one; the last is what the head gets.
std::vector<std::vector<float>> GoldenModelTest::HiddenStates(const StoredModel& model,
                                                              const std::vector<std::int32_t>& tokens,
                                                              DeviceMemory* residual) {
  std::vector<std::vector<float>> states;
  const std::int64_t d = model.config().hidden_size;
  const auto num_tokens = static_cast<std::int64_t>(tokens.size());
  auto memory = DeviceMemory::Allocate(ctx_, num_tokens * d * 4);
  QST_EXPECT_OK(memory);
  *residual = *std::move(memory);
  TokenPass pass;
  pass.tokens = tokens;
  pass.offsets = {0, static_cast<std::int32_t>(num_tokens)};
  for (std::int64_t i = 0; i < model.config().num_layers; ++i) {
    StageOptions options;
    options.first_layer = i;
    options.num_layers = 1;
    options.cuda_dtype = DType::kF32;
    const auto stage = Stage::Create(model, options, ctx_);
    QST_EXPECT_OK(stage);
    QST_EXPECT_OK((*stage)->Forward(pass, Matrix(residual->as<float>(), num_tokens, d),
                                    [&](std::int64_t layer, const ConstMatrixView& h) {
                                      EXPECT_EQ(layer, static_cast<std::int64_t>(states.size()));
                                      states.emplace_back(h.rows * h.cols);
                                      return Download(ctx_, h.data, h.rows * h.cols * 4, states.back().data());
                                    }));
  }
  return states;
}

std::vector<float> GoldenModelTest::Logits(const StoredModel& model, const MatrixView& last) {
  const auto frozen = FrozenWeights::Load(ctx_, model, /*needs_lm_head=*/true);
  QST_EXPECT_OK(frozen);
  const WeightView& lm_head = (*frozen)->head().lm_head;
  auto output = DeviceMemory::Allocate(ctx_, last.rows * lm_head.cols() * 4);
  auto logits = DeviceMemory::Allocate(ctx_, last.rows * lm_head.rows() * 4);
  QST_EXPECT_OK(output);
  QST_EXPECT_OK(logits);
  const MatrixView out = Matrix(output->as<float>(), last.rows, lm_head.cols());
  QST_EXPECT_OK(BackboneOutput(ctx_, (*frozen)->head(), last, out));
  QST_EXPECT_OK(Linear(ctx_, out, lm_head, {}, Matrix(logits->as<float>(), last.rows, lm_head.rows()),
                       /*accumulate=*/false));
  std::vector<float> values(static_cast<std::size_t>(last.rows * lm_head.rows()));
  QST_EXPECT_OK(Download(ctx_, logits->data(), static_cast<std::int64_t>(values.size()) * 4, values.data()));
  return values;
}

void GoldenModelTest::Compare(const StoredModel& model, const std::string& folder, double tolerance,
                              std::optional<double> element_tolerance) {
  const Expected expected = ReadExpected(folder);
  DeviceMemory residual;
  const auto states = HiddenStates(model, expected.tokens, &residual);
  const std::int64_t d = model.config().hidden_size;
  const std::size_t state_elems = expected.tokens.size() * static_cast<std::size_t>(d);
  ASSERT_EQ(states.size() * state_elems, expected.hidden_states.size());
  Errors of_states;
  for (std::size_t i = 0; i < states.size(); ++i) {
    ASSERT_EQ(states[i].size(), state_elems);
    AddErrors(expected.hidden_states.data() + i * state_elems, states[i], d, &of_states);
  }
  const MatrixView last = Matrix(residual.as<float>(), static_cast<std::int64_t>(expected.tokens.size()), d);
  const std::vector<float> logits = Logits(model, last);
  ASSERT_EQ(logits.size(), expected.logits.size());
  Errors of_logits;
  AddErrors(expected.logits.data(), logits, model.config().vocab_size, &of_logits);
  std::printf("%s: %zu states within %.2g (elements %.2g), logits within %.2g (%.2g)\n",
              fs::path(folder).filename().c_str(), states.size(), of_states.row, of_states.element, of_logits.row,
              of_logits.element);
  EXPECT_LE(of_states.row, tolerance);
  EXPECT_LE(of_logits.row, tolerance);
  if (!element_tolerance.has_value()) return;
  EXPECT_LE(of_states.element, *element_tolerance);
  EXPECT_LE(of_logits.element, *element_tolerance);
}

}  // namespace qst
