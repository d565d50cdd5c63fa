// Contexts to run an op in, one for each instruction set and number of threads.
#ifndef QST_KERNELS_TESTING_OP_TEST_CONTEXT_H_
#define QST_KERNELS_TESTING_OP_TEST_CONTEXT_H_

#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/device.h"

namespace qst {

// Fixture of op tests: runs every test with every instruction set that this machine has.
class OpTest : public ::testing::TestWithParam<CpuIsa> {
 protected:
  void SetUp() override {
    if (!ResolveIsa(GetParam()).ok()) GTEST_SKIP() << "this machine lacks the instruction set";
  }

  // 1, 2 or 3 threads.
  OpContext Context(int num_threads = 2) {
    ThreadPool* const pools[] = {&one_, &two_, &three_};
    return OpContext{DeviceType::kCpu, pools[num_threads - 1], GetParam(), nullptr};
  }

 private:
  ThreadPool one_{1};
  ThreadPool two_{2};
  ThreadPool three_{3};
};

inline std::string IsaName(const ::testing::TestParamInfo<CpuIsa>& info) {
  return info.param == CpuIsa::kAvx2 ? "Avx2" : "Portable";
}

#define QST_INSTANTIATE_OP_TEST(suite) \
  INSTANTIATE_TEST_SUITE_P(Cpu, suite, ::testing::Values(CpuIsa::kPortable, CpuIsa::kAvx2), IsaName)

}  // namespace qst

#endif  // QST_KERNELS_TESTING_OP_TEST_CONTEXT_H_
