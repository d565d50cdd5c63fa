// Runs a test of the worker on each device: the CPU, and the GPU (or its shim) where build and machine have one; else
// the test says that it is skipped. Memory that is read on both sides: kernels/testing/test_memory.h.
#ifndef QST_WORKER_TESTING_TEST_DEVICE_H_
#define QST_WORKER_TESTING_TEST_DEVICE_H_

#include <string>

#include "gtest/gtest.h"
#include "kernels/device.h"
#include "kernels/testing/op_test_context.h"
#include "kernels/testing/test_memory.h"
#include "proto/support/status_macros.h"

namespace qst {

inline bool HasTestDevice(DeviceType device) {
  return device == DeviceType::kCpu || TestCuda::StreamOrNull() != nullptr;
}

// HasTestDevice(device). On CUDA all tests of a process share one stream.
inline OpContext TestDeviceContext(DeviceType device, ThreadPool* threads) {
  OpContext ctx;
  ctx.device = device;
  if (device == DeviceType::kCuda) {
    ctx.stream = TestCuda::StreamOrNull();
    return ctx;
  }
  ctx.threads = threads;
  const absl::StatusOr<CpuIsa> isa = ResolveIsa(CpuIsa::kAuto);
  QST_CHECK(isa.ok());
  ctx.isa = *isa;
  return ctx;
}

inline std::string TestDeviceName(DeviceType device) { return device == DeviceType::kCuda ? "Cuda" : "Cpu"; }

#define QST_SKIP_WITHOUT_DEVICE(device) \
  if (!HasTestDevice(device)) GTEST_SKIP() << "no GPU, or a build without the CUDA backend"

// Fixture of tests with no other parameter; QST_INSTANTIATE_DEVICE_TEST(suite) runs them.
class DeviceTest : public ::testing::TestWithParam<DeviceType> {
 protected:
  DeviceTest() : threads_(2), ctx_(HasTestDevice(GetParam()) ? TestDeviceContext(GetParam(), &threads_) : OpContext()) {}
  void SetUp() override { QST_SKIP_WITHOUT_DEVICE(GetParam()); }

  ThreadPool threads_;
  OpContext ctx_;
};

#define QST_INSTANTIATE_DEVICE_TEST(suite)                                                                       \
  INSTANTIATE_TEST_SUITE_P(Devices, suite, ::testing::Values(::qst::DeviceType::kCpu, ::qst::DeviceType::kCuda), \
                           [](const auto& info) { return ::qst::TestDeviceName(info.param); })

}  // namespace qst

#endif  // QST_WORKER_TESTING_TEST_DEVICE_H_
