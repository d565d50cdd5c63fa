// Contexts to run an op in, one for each backend, instruction set and number of threads.
#ifndef QST_KERNELS_TESTING_OP_TEST_CONTEXT_H_
#define QST_KERNELS_TESTING_OP_TEST_CONTEXT_H_

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cuda/device.h"
#include "kernels/device.h"
#include "kernels/dtype.h"

namespace qst {

enum class TestBackend { kCpuPortable, kCpuAvx2, kCuda };

// The GPU that all tests of a process share, and a stream on it; null where there is none.
class TestCuda {
 public:
  static cuda::Stream* StreamOrNull() {
    static TestCuda* const instance = new TestCuda;  // Never destroyed: the driver may be gone by then.
    return instance->stream_.get();
  }

 private:
  TestCuda() {
    absl::StatusOr<std::unique_ptr<cuda::Device>> device = cuda::Device::Open(cuda::DeviceOptions());
    if (!device.ok()) return;
    device_ = *std::move(device);
    absl::StatusOr<cuda::StreamPtr> stream = device_->NewStream();
    if (stream.ok()) stream_ = *std::move(stream);
  }
  std::unique_ptr<cuda::Device> device_;
  cuda::StreamPtr stream_;
};

// Fixture of op tests: runs every test with every backend and instruction set that this machine and build have.
class OpTest : public ::testing::TestWithParam<TestBackend> {
 protected:
  void SetUp() override {
    if (IsCuda()) {
      if (TestCuda::StreamOrNull() == nullptr) GTEST_SKIP() << "no GPU, or a build without the CUDA backend";
    } else if (!ResolveIsa(Isa()).ok()) {
      GTEST_SKIP() << "this machine lacks the instruction set";
    }
  }

  bool IsCuda() const { return GetParam() == TestBackend::kCuda; }

  // Types of activations that the backend computes with.
  std::vector<DType> OperandTypes() const {
    if (IsCuda()) return {DType::kF32, DType::kF16, DType::kBF16};
    return {DType::kF32};
  }

  // 1, 2 or 3 threads; on CUDA the number has no meaning.
  OpContext Context(int num_threads = 2) {
    if (IsCuda()) return OpContext{DeviceType::kCuda, nullptr, CpuIsa::kAuto, TestCuda::StreamOrNull()};
    ThreadPool* const pools[] = {&one_, &two_, &three_};
    return OpContext{DeviceType::kCpu, pools[num_threads - 1], Isa(), nullptr};
  }

 private:
  CpuIsa Isa() const { return GetParam() == TestBackend::kCpuAvx2 ? CpuIsa::kAvx2 : CpuIsa::kPortable; }

  ThreadPool one_{1};
  ThreadPool two_{2};
  ThreadPool three_{3};
};

inline std::string BackendName(const ::testing::TestParamInfo<TestBackend>& info) {
  switch (info.param) {
    case TestBackend::kCpuPortable:
      return "CpuPortable";
    case TestBackend::kCpuAvx2:
      return "CpuAvx2";
    case TestBackend::kCuda:
      return "Cuda";
  }
  return "Unknown";
}

// Families without kernels for CUDA yet take the first; an op on CUDA then has a test of its own or none.
#define QST_INSTANTIATE_CPU_OP_TEST(suite)                                                                       \
  INSTANTIATE_TEST_SUITE_P(Backends, suite, ::testing::Values(TestBackend::kCpuPortable, TestBackend::kCpuAvx2), \
                           BackendName)
#define QST_INSTANTIATE_OP_TEST(suite)                                                                              \
  INSTANTIATE_TEST_SUITE_P(Backends, suite,                                                                         \
                           ::testing::Values(TestBackend::kCpuPortable, TestBackend::kCpuAvx2, TestBackend::kCuda), \
                           BackendName)

}  // namespace qst

#endif  // QST_KERNELS_TESTING_OP_TEST_CONTEXT_H_
