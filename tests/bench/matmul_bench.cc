// The 4-bit matrix product beside the float32 ones of OpenBLAS and oneDNN, on one model's layer shapes.
//
// For every shape and number of tokens the candidates run by turns, round after round, so that whatever else
// the machine does hits all of them; the table gives each one's median over the rounds, in GFLOP/s. The peers
// multiply a float32 weight that is already there, as stored ([n, k]) and transposed beforehand, and the
// better of the two counts; ours starts from the 4-bit weight every time.
//
//   bazel run //tests/bench:matmul_bench -- --threads=2 --tokens=512,1024,2048 --shapes=576x576,192x576
#include <dlfcn.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "cblas.h"
#include "dnnl.h"
#include "kernels/cpu/gemm/gemm.h"
#include "kernels/cpu/gemm/linear.h"
#include "kernels/device.h"
#include "kernels/quant/quant4.h"

ABSL_FLAG(int, threads, 2, "threads of every candidate");
ABSL_FLAG(int, rounds, 9, "rounds over which the median is taken");
ABSL_FLAG(double, seconds, 0.03, "least time of one measurement");
ABSL_FLAG(std::string, tokens, "512,1024,2048", "numbers of tokens T, separated by commas");
ABSL_FLAG(std::string, shapes, "576x576,192x576,1536x576,576x1536",
          "weight shapes n x k, separated by commas; the default is SmolLM2-135M's layer");
ABSL_FLAG(std::string, type, "nf4", "our weight: nf4, fp4, nf4-plain (no double quantization), f32 or bf16");
ABSL_FLAG(bool, best, false, "take the best round instead of the median: for a machine with other work on it");
ABSL_FLAG(std::string, kernels, "auto",
          "our inner loops: auto (what the ops take), portable, avx2 or avx512. To compare avx2 fairly on a machine "
          "with AVX-512, set DNNL_MAX_CPU_ISA=AVX2 and OPENBLAS_CORETYPE=Haswell");
ABSL_FLAG(double, min_ratio, 0.0, "exit with status 1 if ours / best peer is below this for any row");

namespace qst {
namespace {

using Clock = std::chrono::steady_clock;

double Seconds(Clock::duration d) { return std::chrono::duration<double>(d).count(); }

// Threads of OpenMP and OpenBLAS go on spinning for some milliseconds after their work; the next candidate
// should not pay for that.
constexpr std::chrono::milliseconds kQuiet(40);

// Seconds per call, over at least `least` seconds.
double Measure(const std::function<void()>& call, double least) {
  std::this_thread::sleep_for(kQuiet);
  call();  // wakes threads, fills caches
  int calls = 0;
  const auto begin = Clock::now();
  double elapsed = 0.0;
  do {
    call();
    ++calls;
    elapsed = Seconds(Clock::now() - begin);
  } while (elapsed < least);
  return elapsed / calls;
}

double MedianOrBest(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return absl::GetFlag(FLAGS_best) ? values.front() : values[values.size() / 2];
}

std::vector<float> Normal(std::int64_t n, std::mt19937* random) {
  std::normal_distribution<float> normal;
  std::vector<float> values(n);
  for (float& value : values) value = normal(*random);
  return values;
}

void SetPeerThreads(int num_threads) {
  openblas_set_num_threads(num_threads);
  // oneDNN takes OpenMP's setting; the runtime comes with its library.
  using SetThreads = void (*)(int);
  if (auto set = reinterpret_cast<SetThreads>(dlsym(RTLD_DEFAULT, "omp_set_num_threads"))) set(num_threads);
}

// OpenBLAS takes its slowest kernels on a processor younger than itself. It reads the name of the ones to
// use instead when it is loaded, so the program starts itself again with that set.
void ChooseOpenBlasCore(char** argv) {
  constexpr char kVariable[] = "OPENBLAS_CORETYPE";
  if (std::getenv(kVariable) != nullptr || std::string(openblas_get_corename()) != "Prescott") return;
  const char* core = __builtin_cpu_supports("avx512f") ? "SkylakeX"
                     : __builtin_cpu_supports("avx2")  ? "Haswell"
                                                       : nullptr;
  if (core == nullptr) return;
  setenv(kVariable, core, 1);
  execv("/proc/self/exe", argv);
}

struct Row {
  double ours, openblas, onednn;  // GFLOP/s
};

// Null if there are none of this name on this machine.
const cpu::GemmKernels* KernelsByName(const std::string& name) {
  const auto best = ResolveIsa(CpuIsa::kAuto);
  const bool has_avx2 = best.ok() && *best == CpuIsa::kAvx2;
  if (name == "auto") return &cpu::GemmKernelsFor(*best);
  if (name == "portable") return &cpu::kPortableGemmKernels;
  if (name == "avx2" && has_avx2) return &cpu::kAvx2GemmKernels;
  if (name == "avx512" && has_avx2 && cpu::HasAvx512()) return &cpu::kAvx512GemmKernels;
  return nullptr;
}

Row RunShape(ThreadPool* threads, const cpu::GemmKernels& kernels, std::int64_t n, std::int64_t k,
             std::int64_t tokens) {
  std::mt19937 random(1);
  const std::vector<float> x = Normal(tokens * k, &random);
  const std::vector<float> w = Normal(n * k, &random);
  std::vector<float> w_transposed(n * k);
  for (std::int64_t i = 0; i < n; ++i) {
    for (std::int64_t j = 0; j < k; ++j) w_transposed[j * n + i] = w[i * k + j];
  }
  std::vector<std::uint16_t> w_bf16;
  for (const float value : w) {
    std::uint32_t bits;
    __builtin_memcpy(&bits, &value, 4);
    w_bf16.push_back(static_cast<std::uint16_t>(bits >> 16));
  }
  std::vector<float> y(tokens * n);

  const std::string type = absl::GetFlag(FLAGS_type);
  Quant4Options options;
  options.type = type == "fp4" ? Quant4Type::kFP4 : Quant4Type::kNF4;
  options.double_quant = type != "nf4-plain";
  const Quant4Tensor quantized = Quantize4Bit(w.data(), n, k, options).value();
  WeightView weight = WeightView::Quantized(quantized.view());
  if (type == "f32") weight = WeightView::Dense(Matrix(w.data(), n, k));
  if (type == "bf16") weight = WeightView::Dense(ConstMatrixView(w_bf16.data(), DType::kBF16, n, k, k));

  const auto m_int = static_cast<int>(tokens), n_int = static_cast<int>(n), k_int = static_cast<int>(k);
  const std::vector<std::function<void()>> candidates = {
      [&] {
        cpu::Linear(threads, kernels, Matrix(x.data(), tokens, k), weight, ConstMatrixView(),
                    Matrix(y.data(), tokens, n), false);
      },
      [&] {
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, m_int, n_int, k_int, 1.0f, x.data(), k_int, w.data(),
                    k_int, 0.0f, y.data(), n_int);
      },
      [&] {
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, m_int, n_int, k_int, 1.0f, x.data(), k_int,
                    w_transposed.data(), n_int, 0.0f, y.data(), n_int);
      },
      [&] {
        dnnl_sgemm('N', 'T', tokens, n, k, 1.0f, x.data(), k, w.data(), k, 0.0f, y.data(), n);
      },
      [&] {
        dnnl_sgemm('N', 'N', tokens, n, k, 1.0f, x.data(), k, w_transposed.data(), n, 0.0f, y.data(), n);
      },
  };
  std::vector<std::vector<double>> seconds(candidates.size());
  for (int round = 0; round < absl::GetFlag(FLAGS_rounds); ++round) {
    for (std::size_t c = 0; c < candidates.size(); ++c) {
      seconds[c].push_back(Measure(candidates[c], absl::GetFlag(FLAGS_seconds)));
    }
  }
  const double giga_flop = 2e-9 * static_cast<double>(tokens * n * k);
  const auto rate = [&](std::size_t c) { return giga_flop / MedianOrBest(seconds[c]); };
  return {rate(0), std::max(rate(1), rate(2)), std::max(rate(3), rate(4))};
}

int Main(char** argv) {
  ChooseOpenBlasCore(argv);
  const cpu::GemmKernels* kernels = KernelsByName(absl::GetFlag(FLAGS_kernels));
  if (kernels == nullptr) {
    std::fprintf(stderr, "--kernels: this machine has no \"%s\"\n", absl::GetFlag(FLAGS_kernels).c_str());
    return 2;
  }
  const int num_threads = absl::GetFlag(FLAGS_threads);
  if (num_threads < 1 || absl::GetFlag(FLAGS_rounds) < 1) {
    std::fprintf(stderr, "--threads and --rounds must be positive\n");
    return 2;
  }
  const std::vector<std::string> types = {"nf4", "fp4", "nf4-plain", "f32", "bf16"};
  if (std::find(types.begin(), types.end(), absl::GetFlag(FLAGS_type)) == types.end()) {
    std::fprintf(stderr, "--type: unknown weight \"%s\"\n", absl::GetFlag(FLAGS_type).c_str());
    return 2;
  }
  ThreadPool threads(num_threads);
  SetPeerThreads(num_threads);
  std::printf("%d threads, weight %s, kernels %s; %s of %d rounds, GFLOP/s; OpenBLAS core %s\n", num_threads,
              absl::GetFlag(FLAGS_type).c_str(), kernels->name, absl::GetFlag(FLAGS_best) ? "best" : "median",
              absl::GetFlag(FLAGS_rounds), openblas_get_corename());
  std::printf("%12s %6s %9s %9s %9s %7s\n", "n x k", "T", "ours", "OpenBLAS", "oneDNN", "ratio");
  double worst = 1e9;
  for (const absl::string_view shape : absl::StrSplit(absl::GetFlag(FLAGS_shapes), ',')) {
    const std::vector<std::string> sizes = absl::StrSplit(shape, 'x');
    std::int64_t n = 0, k = 0;
    if (sizes.size() != 2 || !absl::SimpleAtoi(sizes[0], &n) || !absl::SimpleAtoi(sizes[1], &k) || n < 1 || k < 1) {
      std::fprintf(stderr, "--shapes: \"%s\" is not of the form 576x1536\n", std::string(shape).c_str());
      return 2;
    }
    for (const absl::string_view count : absl::StrSplit(absl::GetFlag(FLAGS_tokens), ',')) {
      std::int64_t tokens = 0;
      if (!absl::SimpleAtoi(count, &tokens) || tokens < 1) {
        std::fprintf(stderr, "--tokens: \"%s\" is not a positive number\n", std::string(count).c_str());
        return 2;
      }
      const Row row = RunShape(&threads, *kernels, n, k, tokens);
      const double ratio = row.ours / std::max(row.openblas, row.onednn);
      worst = std::min(worst, ratio);
      std::printf("%12s %6lld %9.1f %9.1f %9.1f %7.2f\n", std::string(shape).c_str(), static_cast<long long>(tokens),
                  row.ours, row.openblas, row.onednn, ratio);
      std::fflush(stdout);
    }
  }
  std::printf("smallest ratio %.2f\n", worst);
  return worst >= absl::GetFlag(FLAGS_min_ratio) ? 0 : 1;
}

}  // namespace
}  // namespace qst

int main(int argc, char** argv) {
  absl::ParseCommandLine(argc, argv);
  return qst::Main(argv);
}
