// Device and page-locked memory, copies and fills, devices.
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/testing/cuda_shim/shim_test_util.h"

namespace qst::cuda_shim {
namespace {

// Writes where host code would not be allowed to.
__global__ void PokeKernel(unsigned char* address, int value) { *address = static_cast<unsigned char>(value); }

void Poke(unsigned char* address, int value) {
  const cudaLaunchConfig_t config = LaunchConfig(1, 1);
  ASSERT_EQ(cudaLaunchKernelEx(&config, PokeKernel, address, value), cudaSuccess);
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
}

TEST(CudaShimMemoryTest, FreshMemoryIsAlignedAndHoldsNoUsableValues) {
  for (const std::size_t bytes : {1u, 255u, 256u, 257u, 4096u, 100000u}) {
    DeviceArray<unsigned char> device(bytes);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(device.data()) % 256, 0u);
    EXPECT_EQ(device.Get(), std::vector<unsigned char>(bytes, 0xff));
    unsigned char* host = nullptr;
    ASSERT_EQ(cudaMallocHost(&host, bytes), cudaSuccess);
    EXPECT_EQ(std::vector<unsigned char>(host, host + bytes), std::vector<unsigned char>(bytes, 0xff));
    EXPECT_EQ(cudaFreeHost(host), cudaSuccess);
  }
  void* nothing = &nothing;
  EXPECT_EQ(cudaMalloc(&nothing, 0), cudaSuccess);
  EXPECT_EQ(nothing, nullptr);
  EXPECT_EQ(cudaFree(nullptr), cudaSuccess);
  EXPECT_EQ(cudaFreeHost(nullptr), cudaSuccess);
}

TEST(CudaShimMemoryTest, WritesBesideAllocationsAreFoundWhenTheyAreFreed) {
  const auto poke_and_free = [](std::ptrdiff_t offset) {
    unsigned char* memory = nullptr;
    ASSERT_EQ(cudaMalloc(&memory, 100), cudaSuccess);
    const cudaLaunchConfig_t config = LaunchConfig(1, 1);
    ASSERT_EQ(cudaLaunchKernelEx(&config, PokeKernel, memory + offset, 1), cudaSuccess);
    cudaFree(memory);
  };
  EXPECT_DEATH(poke_and_free(100), "a write to byte 100 of 100 bytes of device memory|use-after-poison");
  EXPECT_DEATH(poke_and_free(255), "a write to byte 255 of 100 bytes of device memory|use-after-poison");
  EXPECT_DEATH(poke_and_free(-1), "a write 1 bytes before the start of 100 bytes of device memory|use-after-poison");
  // Behind the rounding begins a page that cannot be accessed.
  EXPECT_DEATH(poke_and_free(256), "");
  poke_and_free(99);
}

TEST(CudaShimMemoryTest, DeviceSynchronisationLooksForWritesBesideAllocations) {
  DeviceArray<unsigned char> device(100);
  EXPECT_DEATH(Poke(device.data() + 100, 1), "a write to byte 100 of 100 bytes of device memory|use-after-poison");
}

TEST(CudaShimMemoryTest, FreedMemoryCannotBeUsed) {
  const auto use_after_free = [] {
    unsigned char* memory = nullptr;
    ASSERT_EQ(cudaMalloc(&memory, 100), cudaSuccess);
    ASSERT_EQ(cudaFree(memory), cudaSuccess);
    Poke(memory, 1);
  };
  EXPECT_DEATH(use_after_free(), "");
}

TEST(CudaShimMemoryTest, HostCodeCannotUseProtectedDeviceMemory) {
  const ScopedEnvironment environment("QST_CUDA_SHIM_PROTECT", "1");
  DeviceArray<unsigned char> before(std::vector<unsigned char>(100, 1));
  DeviceArray<unsigned char> after(std::vector<unsigned char>(100, 2));
  EXPECT_DEATH(*static_cast<volatile unsigned char*>(before.data()) = 1, "");
  EXPECT_DEATH(std::vector<unsigned char>(after.data(), after.data() + 1), "");
  Poke(after.data(), 3);
  ASSERT_EQ(cudaMemcpy(before.data(), after.data(), 2, cudaMemcpyDeviceToDevice), cudaSuccess);
  EXPECT_EQ(before.Get()[0], 3);
  EXPECT_EQ(before.Get()[1], 2);
}

TEST(CudaShimMemoryTest, OnlyStartsOfAllocationsCanBeFreed) {
  DeviceArray<unsigned char> device(100);
  int on_stack = 0;
  EXPECT_EQ(cudaFree(device.data() + 1), cudaErrorInvalidValue);
  EXPECT_EQ(cudaFree(&on_stack), cudaErrorInvalidValue);
  EXPECT_EQ(cudaFreeHost(device.data()), cudaErrorInvalidValue);
  EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidValue);
}

TEST(CudaShimMemoryTest, MemoryIsLimited) {
  const ScopedEnvironment environment("QST_CUDA_SHIM_MEMORY_BYTES", "1000000");
  std::size_t free_bytes = 0;
  std::size_t total_bytes = 0;
  ASSERT_EQ(cudaMemGetInfo(&free_bytes, &total_bytes), cudaSuccess);
  EXPECT_EQ(free_bytes, 1000000u);
  EXPECT_EQ(total_bytes, 1000000u);
  {
    DeviceArray<unsigned char> device(600000);
    ASSERT_EQ(cudaMemGetInfo(&free_bytes, &total_bytes), cudaSuccess);
    EXPECT_EQ(free_bytes, 400000u);
    void* more = nullptr;
    EXPECT_EQ(cudaMalloc(&more, 400001), cudaErrorMemoryAllocation);
    EXPECT_EQ(more, nullptr);
    EXPECT_EQ(cudaGetLastError(), cudaErrorMemoryAllocation);
    DeviceArray<unsigned char> rest(400000);
    EXPECT_EQ(cudaMalloc(&more, 1), cudaErrorMemoryAllocation);
    EXPECT_EQ(cudaMalloc(&more, ~std::size_t{0}), cudaErrorMemoryAllocation);
  }
  ASSERT_EQ(cudaMemGetInfo(&free_bytes, &total_bytes), cudaSuccess);
  EXPECT_EQ(free_bytes, 1000000u);
  cudaDeviceProp properties;
  ASSERT_EQ(cudaGetDeviceProperties(&properties, 0), cudaSuccess);
  EXPECT_EQ(properties.totalGlobalMem, 1000000u);
}

TEST(CudaShimMemoryTest, CopiesMustGoWhereTheySay) {
  DeviceArray<unsigned char> a(100);
  DeviceArray<unsigned char> b(100);
  std::vector<unsigned char> host(100, 1);
  unsigned char* pinned = nullptr;
  ASSERT_EQ(cudaMallocHost(&pinned, 100), cudaSuccess);
  std::memset(pinned, 5, 100);
  const auto copy = [](void* to, const void* from, cudaMemcpyKind kind, std::size_t bytes = 100) {
    const cudaError_t blocking = cudaMemcpy(to, from, bytes, kind);
    EXPECT_EQ(cudaMemcpyAsync(to, from, bytes, kind), blocking);
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    return blocking;
  };
  EXPECT_EQ(copy(a.data(), host.data(), cudaMemcpyHostToDevice), cudaSuccess);
  EXPECT_EQ(copy(b.data(), a.data(), cudaMemcpyDeviceToDevice), cudaSuccess);
  EXPECT_EQ(copy(pinned, b.data(), cudaMemcpyDeviceToHost), cudaSuccess);
  EXPECT_EQ(pinned[99], 1);
  EXPECT_EQ(copy(host.data(), pinned, cudaMemcpyHostToHost), cudaSuccess);
  EXPECT_EQ(copy(host.data(), b.data(), cudaMemcpyDefault), cudaSuccess);
  EXPECT_EQ(copy(host.data(), pinned, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
  EXPECT_EQ(copy(host.data(), pinned, cudaMemcpyDeviceToHost), cudaErrorInvalidValue);
  EXPECT_EQ(copy(a.data(), host.data(), cudaMemcpyDeviceToDevice), cudaErrorInvalidValue);
  EXPECT_EQ(copy(a.data(), b.data(), cudaMemcpyHostToDevice), cudaErrorInvalidValue);
  EXPECT_EQ(copy(a.data(), b.data(), static_cast<cudaMemcpyKind>(9)), cudaErrorInvalidMemcpyDirection);
  EXPECT_EQ(copy(a.data(), nullptr, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
  EXPECT_EQ(copy(nullptr, nullptr, cudaMemcpyHostToDevice, 0), cudaSuccess);
  EXPECT_EQ(copy(a.data() + 1, host.data(), cudaMemcpyHostToDevice), cudaErrorInvalidValue) << "beyond the end";
  EXPECT_EQ(copy(host.data(), a.data() + 99, cudaMemcpyDeviceToHost, 2), cudaErrorInvalidValue);
  EXPECT_EQ(cudaFreeHost(pinned), cudaSuccess);
}

TEST(CudaShimMemoryTest, RowsAreCopiedWithPitches) {
  std::vector<unsigned char> host(60);
  for (std::size_t i = 0; i < host.size(); ++i) host[i] = static_cast<unsigned char>(i);
  DeviceArray<unsigned char> device(std::vector<unsigned char>(60, 200));
  ASSERT_EQ(cudaMemcpy2DAsync(device.data(), 15, host.data(), 12, 10, 4, cudaMemcpyHostToDevice), cudaSuccess);
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  const std::vector<unsigned char> result = device.Get();
  for (int i = 0; i < 60; ++i) EXPECT_EQ(result[i], i % 15 < 10 ? 12 * (i / 15) + i % 15 : 200) << i;
  EXPECT_EQ(cudaMemcpy2D(device.data(), 9, host.data(), 12, 10, 4, cudaMemcpyHostToDevice), cudaErrorInvalidPitchValue);
  EXPECT_EQ(cudaMemcpy2D(device.data(), 17, host.data(), 12, 10, 4, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemcpy2D(device.data(), 16, host.data(), 12, 10, 4, cudaMemcpyHostToDevice), cudaSuccess);
}

TEST(CudaShimMemoryTest, FillsStayInside) {
  DeviceArray<unsigned char> device(std::vector<unsigned char>(20, 1));
  ASSERT_EQ(cudaMemset(device.data() + 5, 7, 10), cudaSuccess);
  ASSERT_EQ(cudaMemset2DAsync(device.data() + 15, 2, 9, 1, 3), cudaSuccess);
  EXPECT_EQ(device.Get(), (std::vector<unsigned char>{1, 1, 1, 1, 1, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 9, 1, 9, 1, 9}));
  EXPECT_EQ(cudaMemset(device.data() + 5, 7, 16), cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemset(nullptr, 7, 16), cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemset(nullptr, 7, 0), cudaSuccess);
  unsigned char on_stack[16];
  EXPECT_EQ(cudaMemsetAsync(on_stack, 7, 16), cudaErrorInvalidValue);
}

TEST(CudaShimMemoryTest, PointersAreKnown) {
  DeviceArray<unsigned char> device(100);
  unsigned char* pinned = nullptr;
  ASSERT_EQ(cudaHostAlloc(&pinned, 100, cudaHostAllocPortable), cudaSuccess);
  std::vector<unsigned char> host(100);
  const auto type = [](const void* address) {
    cudaPointerAttributes attributes;
    EXPECT_EQ(cudaPointerGetAttributes(&attributes, address), cudaSuccess);
    return attributes.type;
  };
  EXPECT_EQ(type(device.data() + 99), cudaMemoryTypeDevice);
  EXPECT_EQ(type(device.data() + 100), cudaMemoryTypeUnregistered);
  EXPECT_EQ(type(pinned), cudaMemoryTypeHost);
  EXPECT_EQ(type(host.data()), cudaMemoryTypeUnregistered);
  ASSERT_EQ(cudaHostRegister(host.data(), 100, cudaHostRegisterDefault), cudaSuccess);
  EXPECT_EQ(cudaHostRegister(host.data() + 50, 10, cudaHostRegisterDefault), cudaErrorHostMemoryAlreadyRegistered);
  EXPECT_EQ(type(host.data() + 50), cudaMemoryTypeHost);
  EXPECT_EQ(cudaFreeHost(host.data()), cudaErrorInvalidValue);
  EXPECT_EQ(cudaHostUnregister(host.data()), cudaSuccess);
  EXPECT_EQ(cudaHostUnregister(host.data()), cudaErrorHostMemoryNotRegistered);
  EXPECT_EQ(cudaFreeHost(pinned), cudaSuccess);
}

TEST(CudaShimDeviceTest, OneHopperLikeDeviceUnlessTheEnvironmentAsksForMore) {
  int count = 0;
  ASSERT_EQ(cudaGetDeviceCount(&count), cudaSuccess);
  EXPECT_EQ(count, 1);
  cudaDeviceProp properties;
  ASSERT_EQ(cudaGetDeviceProperties(&properties, 0), cudaSuccess);
  EXPECT_STREQ(properties.name, "CUDA host shim");
  EXPECT_EQ(properties.major, 9);
  EXPECT_EQ(properties.sharedMemPerBlockOptin, 232448u);
  int value = 0;
  ASSERT_EQ(cudaDeviceGetAttribute(&value, cudaDevAttrMultiProcessorCount, 0), cudaSuccess);
  EXPECT_EQ(value, properties.multiProcessorCount);
  EXPECT_EQ(cudaDeviceGetAttribute(&value, static_cast<cudaDeviceAttr>(9999), 0), cudaErrorInvalidValue);
  EXPECT_EQ(cudaGetDeviceProperties(&properties, 1), cudaErrorInvalidDevice);
  EXPECT_EQ(cudaSetDevice(-1), cudaErrorInvalidDevice);
  EXPECT_EQ(cudaSetDevice(0), cudaSuccess);
  char bus_id[16];
  ASSERT_EQ(cudaDeviceGetPCIBusId(bus_id, sizeof(bus_id), 0), cudaSuccess);
  EXPECT_STREQ(bus_id, "0000:01:00.0");
}

TEST(CudaShimDeviceTest, ErrorsHaveNamesAndTexts) {
  EXPECT_STREQ(cudaGetErrorName(cudaErrorInvalidValue), "cudaErrorInvalidValue");
  EXPECT_STREQ(cudaGetErrorString(cudaErrorMemoryAllocation), "out of memory");
  EXPECT_STREQ(cudaGetErrorString(static_cast<cudaError_t>(12345)), "unrecognized error code");
}

}  // namespace
}  // namespace qst::cuda_shim
