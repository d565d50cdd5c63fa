// How long an import takes, against the limit of reading its source once at the speed of memory; and the memory it
// takes.
//
//   import_bench FOLDER_FOR_FILES SOURCE|synthetic:BILLIONS [threads]
//
// "synthetic:2" makes a bf16 Hugging Face folder of about 2 billion parameters there first, in the shape of a LLaMA
// model.
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "kernels/dtype_convert.h"
#include "proto/support/status_macros.h"
#include "worker/checkpoint/file_io.h"
#include "worker/checkpoint/import_model.h"
#include "worker/checkpoint/model_source.h"
#include "worker/checkpoint/safetensors_writer.h"
#include "worker/checkpoint/stored_model.h"

namespace qst {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

// CPU seconds of all threads so far: what stays meaningful when other programs run beside.
double CpuSeconds() {
  rusage usage;
  QST_CHECK(::getrusage(RUSAGE_SELF, &usage) == 0);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + 1e-6 * static_cast<double>(time.tv_usec);
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

double Seconds(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// A LLaMA model of 2048 x 5632 with 32 heads and as many layers as it takes.
absl::Status MakeSynthetic(const std::string& folder, double billions) {
  ModelConfig config;
  config.vocab_size = 32000;
  config.hidden_size = 2048;
  config.intermediate_size = 5632;
  config.num_heads = 32;
  config.num_kv_heads = 32;
  config.head_dim = 64;
  config.max_position_embeddings = 2048;
  config.torch_dtype = "bfloat16";
  config.num_layers = std::max<std::int64_t>(1, static_cast<std::int64_t>((billions * 1e9 - 131e6) / 51.4e6));
  fs::create_directories(folder);
  QST_RETURN_IF_ERROR(WriteFileAtomically(folder + "/config.json", ModelConfigToJson(config, "")));
  QST_RETURN_IF_ERROR(WriteFileAtomically(folder + "/tokenizer.json",
                                          R"({"version":"1.0","model":{"type":"BPE","vocab":{"a":0},"merges":[]}})"));
  std::vector<SafetensorsEntry> entries;
  for (const ModelTensor& tensor : ModelTensors(config)) entries.push_back({tensor.name, DType::kBF16, tensor.shape});
  QST_ASSIGN_OR_RETURN(const auto writer,
                       SafetensorsStreamWriter::Create(folder + "/model.safetensors", entries, {{"format", "pt"}}));
  // About normal: the sum of four uniform numbers. One megabyte of them is enough variety.
  std::vector<std::uint16_t> values(1 << 19);
  std::uint64_t state = 1;
  for (std::uint16_t& value : values) {
    float sum = 0.0f;
    for (int i = 0; i < 4; ++i) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      sum += static_cast<float>(state >> 40) / static_cast<float>(1 << 24) - 0.5f;
    }
    value = F32ToBF16(0.03f * sum);
  }
  for (const SafetensorsEntry& entry : entries) {
    for (std::int64_t left = entry.NumBytes(); left > 0;) {
      const std::int64_t count = std::min<std::int64_t>(left, static_cast<std::int64_t>(values.size() * 2));
      QST_RETURN_IF_ERROR(writer->Append(values.data(), static_cast<std::uint64_t>(count)));
      left -= count;
    }
  }
  return writer->Finish();
}

// Bytes a second of reading the files of a folder (or the file) through a mapping, when they are in the page cache.
// What a sum needs is the speed of memory.
double ReadSpeed(const std::string& source, std::uint64_t* total_bytes) {
  std::vector<std::string> paths;
  if (fs::is_directory(source)) {
    for (const fs::directory_entry& entry : fs::directory_iterator(source)) {
      if (entry.path().extension() == ".safetensors" || entry.path().extension() == ".bin")
        paths.push_back(entry.path());
    }
  } else {
    paths.push_back(source);
  }
  double best = 0.0;
  for (int round = 0; round < 3; ++round) {
    const Clock::time_point start = Clock::now();
    *total_bytes = 0;
    std::uint64_t sum = 0;
    for (const std::string& path : paths) {
      const auto file = MappedFile::Open(path);
      QST_CHECK(file.ok());
      const auto* words = reinterpret_cast<const std::uint64_t*>((*file)->data());
      for (std::uint64_t i = 0; i < (*file)->size() / 8; ++i) sum += words[i];
      *total_bytes += (*file)->size();
    }
    volatile std::uint64_t sink = sum;
    static_cast<void>(sink);
    best = std::max(best, static_cast<double>(*total_bytes) / Seconds(start));
  }
  return best;
}

// A number of kB from /proc/self/status.
std::int64_t StatusKb(absl::string_view key) {
  std::ifstream file("/proc/self/status");
  for (std::string line; std::getline(file, line);) {
    absl::string_view rest = line;
    std::int64_t value = 0;
    if (absl::ConsumePrefix(&rest, key) && absl::SimpleAtoi(absl::StripSuffix(rest, " kB"), &value)) return value;
  }
  return 0;
}

absl::Status Run(const std::string& work, std::string source, int num_threads) {
  if (absl::StartsWith(source, "synthetic:")) {
    double billions = 0.0;
    if (!absl::SimpleAtod(source.substr(10), &billions))
      return absl::InvalidArgumentError("synthetic: how many billions?");
    source = absl::StrCat(work, "/synthetic");
    QST_RETURN_IF_ERROR(MakeSynthetic(source, billions));
  }
  QST_ASSIGN_OR_RETURN(const ModelSource opened, OpenModelSource(source));
  std::int64_t largest = 0;
  for (const ModelTensor& tensor : ModelTensors(opened.config)) {
    if (tensor.kind == ModelTensor::Kind::kLinear) largest = std::max(largest, tensor.num_elems() * 4);
  }
  std::uint64_t bytes = 0;
  const double speed = ReadSpeed(source, &bytes);
  const double limit = static_cast<double>(bytes) / speed;
  std::printf("%s: %.2f billion parameters, %.2f GB; read at %.1f GB/s by one thread: limit %.2f s\n", source.c_str(),
              static_cast<double>(opened.config.NumParameters()) / 1e9, static_cast<double>(bytes) / 1e9, speed / 1e9,
              limit);
  for (const bool is_quantized : {true, false}) {
    ImportOptions options;
    options.source = source;
    options.destination = absl::StrCat(work, "/store.", ::getpid(), is_quantized ? ".nf4" : ".none");
    options.num_threads = num_threads;
    if (!is_quantized) options.quantization.reset();
    std::atomic<bool> is_over{false};
    const std::int64_t before_kb = StatusKb("RssAnon:");
    std::int64_t peak_kb = before_kb;
    std::thread sampler([&] {
      while (!is_over) {
        peak_kb = std::max(peak_kb, StatusKb("RssAnon:"));
        std::this_thread::sleep_for(std::chrono::milliseconds(2));
      }
    });
    double written = 0.0;
    const double cpu_before = CpuSeconds();
    const Clock::time_point start = Clock::now();
    const absl::Status status = ImportModel(options, [&](std::int64_t done, std::int64_t total, absl::string_view) {
      if (done == total && written == 0.0) written = Seconds(start);
      return true;
    });
    const double seconds = Seconds(start);
    const double cpu = CpuSeconds() - cpu_before;
    is_over = true;
    sampler.join();
    QST_RETURN_IF_ERROR(status);
    const double stored = static_cast<double>(fs::file_size(options.destination + "/model.safetensors"));
    std::printf(
        "  %s, %d threads: %.2f s (%.2f s of CPU), of which %.2f s after the last tensor (sync, check); %.1f times the "
        "limit; "
        "%.2f GB stored\n",
        is_quantized ? "nf4 " : "none", num_threads, seconds, cpu, seconds - written, seconds / limit, stored / 1e9);
    std::printf("        memory: %.1f MB at its peak, largest linear weight as float32 %.1f MB: %.2f times\n",
                static_cast<double>(peak_kb - before_kb) / 1e3, static_cast<double>(largest) / 1e6,
                static_cast<double>(peak_kb - before_kb) * 1e3 / static_cast<double>(largest));
    fs::remove_all(options.destination);
  }
  return absl::OkStatus();
}

}  // namespace
}  // namespace qst

int main(int argc, char** argv) {
  if (argc < 3) {
    std::fprintf(stderr, "usage: import_bench FOLDER_FOR_FILES SOURCE|synthetic:BILLIONS [threads]\n");
    return 2;
  }
  const int num_threads = argc > 3 ? std::atoi(argv[3]) : static_cast<int>(std::thread::hardware_concurrency());
  const absl::Status status = qst::Run(argv[1], argv[2], num_threads);
  if (!status.ok()) std::fprintf(stderr, "import_bench: %s\n", status.ToString().c_str());
  return status.ok() ? 0 : 1;
}
