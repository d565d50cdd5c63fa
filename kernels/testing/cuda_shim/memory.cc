#include "kernels/testing/cuda_shim/memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <vector>

#include "cuda_shim/runtime_api.h"
#include "kernels/testing/cuda_shim/device.h"
#include "kernels/testing/cuda_shim/guarded.h"
#include "kernels/testing/cuda_shim/stream.h"

namespace qst::cuda_shim {
namespace {

constexpr std::size_t kAlignment = 256;

// Each allocation is a mapping of its own:
//   pages: unused, then kGuardBytes of guard | the memory, aligned to 256 bytes | guard up to the next page | a page
//   that cannot be accessed.
// So reading or writing behind it stops the program at once, but for the up to 255 bytes that alignment costs; those,
// and the ones before it, are guard bytes that are looked at when it is freed. Freed memory cannot be accessed.
struct Allocation {
  MemoryKind kind = MemoryKind::kDevice;
  int device = 0;
  std::size_t bytes = 0;
  unsigned char* mapping = nullptr;  // null: registered host memory, which is not ours
  std::size_t mapping_bytes = 0;
  std::size_t usable_bytes = 0;  // of it, from its start
  std::size_t guard_after_bytes = 0;
  bool is_protected = false;
};

class Memory {
 public:
  // Null if the system has no memory left.
  void* Allocate(MemoryKind kind, int device, std::size_t bytes) {
    const std::size_t page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    const std::size_t rounded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
    const std::size_t usable = (rounded + kGuardBytes + page - 1) / page * page;
    Allocation allocation;
    allocation.kind = kind;
    allocation.device = device;
    allocation.bytes = bytes;
    allocation.mapping_bytes = usable + page;
    allocation.usable_bytes = usable;
    void* mapping = mmap(nullptr, allocation.mapping_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapping == MAP_FAILED) return nullptr;
    if (mprotect(static_cast<unsigned char*>(mapping) + usable, page, PROT_NONE) != 0) {
      munmap(mapping, allocation.mapping_bytes);
      return nullptr;
    }
    allocation.mapping = static_cast<unsigned char*>(mapping);
    allocation.guard_after_bytes = rounded - bytes;
    unsigned char* address = allocation.mapping + usable - rounded;
    std::memset(address, kFreshByte, bytes);
    SetGuard(address - kGuardBytes, kGuardBytes);
    SetGuard(address + bytes, allocation.guard_after_bytes);
    const std::lock_guard<std::mutex> lock(mutex_);
    if (kind == MemoryKind::kDevice) used_[device] += bytes;
    Allocation& added = allocations_.emplace(address, allocation).first->second;
    if (num_accesses_ == 0 && IsProtecting()) Protect(added, true);
    return address;
  }

  // False if the address is not the start of an allocation of that kind.
  bool Free(MemoryKind kind, void* address) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = allocations_.find(static_cast<unsigned char*>(address));
    if (found == allocations_.end() || found->second.kind != kind || found->second.mapping == nullptr) return false;
    Protect(found->second, false);
    const Allocation allocation = found->second;
    CheckGuards(found->first, allocation);
    if (kind == MemoryKind::kDevice) used_[allocation.device] -= allocation.bytes;
    allocations_.erase(found);
    Bury(allocation);
    return true;
  }

  bool Register(void* address, std::size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    auto* start = static_cast<unsigned char*>(address);
    if (FindLocked(start + bytes - 1) != allocations_.end() || FindLocked(start) != allocations_.end()) return false;
    Allocation allocation;
    allocation.kind = MemoryKind::kPinned;
    allocation.bytes = bytes;
    allocations_.emplace(start, allocation);
    return true;
  }

  bool Unregister(void* address) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = allocations_.find(static_cast<unsigned char*>(address));
    if (found == allocations_.end() || found->second.mapping != nullptr) return false;
    allocations_.erase(found);
    return true;
  }

  MemoryRange Find(const void* address) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto* at = static_cast<const unsigned char*>(address);
    const auto found = FindLocked(at);
    if (found == allocations_.end()) return {};
    return {found->second.kind, found->second.device,
            found->second.bytes - static_cast<std::size_t>(at - found->first)};
  }

  std::size_t UsedBytes(int device) {
    const std::lock_guard<std::mutex> lock(mutex_);
    return used_[device];
  }

  void BeginAccess() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (num_accesses_++ != 0 || num_protected_ == 0) return;
    for (auto& [address, allocation] : allocations_) Protect(allocation, false);
  }

  void EndAccess() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (--num_accesses_ != 0 || !IsProtecting()) return;
    for (auto& [address, allocation] : allocations_) Protect(allocation, true);
  }

  // Needs access.
  void CheckAll() {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (const auto& [address, allocation] : allocations_) {
      if (allocation.mapping == nullptr) continue;
      CheckGuards(address, allocation);
      SetGuard(address - kGuardBytes, kGuardBytes);
      SetGuard(address + allocation.bytes, allocation.guard_after_bytes);
    }
  }

 private:
  static bool IsProtecting() {
    const char* value = std::getenv("QST_CUDA_SHIM_PROTECT");
    return value != nullptr && std::strcmp(value, "1") == 0;
  }

  void Protect(Allocation& allocation, bool is_protected) {
    if (allocation.kind != MemoryKind::kDevice || allocation.is_protected == is_protected) return;
    if (mprotect(allocation.mapping, allocation.usable_bytes, is_protected ? PROT_NONE : PROT_READ | PROT_WRITE) != 0) {
      std::perror("CUDA shim: cannot change the protection of device memory");
      std::abort();
    }
    allocation.is_protected = is_protected;
    num_protected_ += is_protected ? 1 : -1;
  }

  // Gives the pages back, but keeps the addresses for a while, so that nothing else is found there.
  void Bury(const Allocation& allocation) {
    constexpr std::size_t kNumBuried = 256;
    constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;
    if (mmap(allocation.mapping, allocation.mapping_bytes, PROT_NONE, kFlags, -1, 0) == MAP_FAILED) {
      std::perror("CUDA shim: cannot take memory back");
      std::abort();
    }
    buried_.push_back(allocation);
    if (buried_.size() <= kNumBuried) return;
    munmap(buried_.front().mapping, buried_.front().mapping_bytes);
    buried_.pop_front();
  }

  using Allocations = std::map<unsigned char*, Allocation>;

  // An allocation of no bytes holds its own address.
  Allocations::iterator FindLocked(const unsigned char* address) {
    auto after = allocations_.upper_bound(const_cast<unsigned char*>(address));
    if (after == allocations_.begin()) return allocations_.end();
    const auto found = std::prev(after);
    return address == found->first || address < found->first + found->second.bytes ? found : allocations_.end();
  }

  static void CheckGuards(unsigned char* address, const Allocation& allocation) {
    const char* what = allocation.kind == MemoryKind::kDevice ? "device" : "page-locked host";
    const std::size_t before = TakeGuard(address - kGuardBytes, kGuardBytes);
    if (before != kGuardBytes) {
      std::fprintf(stderr, "CUDA shim: a write %zu bytes before the start of %zu bytes of %s memory at %p\n",
                   kGuardBytes - before, allocation.bytes, what, static_cast<void*>(address));
      std::abort();
    }
    const std::size_t after = TakeGuard(address + allocation.bytes, allocation.guard_after_bytes);
    if (after != allocation.guard_after_bytes) {
      std::fprintf(stderr, "CUDA shim: a write to byte %zu of %zu bytes of %s memory at %p\n", allocation.bytes + after,
                   allocation.bytes, what, static_cast<void*>(address));
      std::abort();
    }
  }

  std::mutex mutex_;
  Allocations allocations_;
  std::deque<Allocation> buried_;
  int num_accesses_ = 0;
  int num_protected_ = 0;
  std::vector<std::size_t> used_ = std::vector<std::size_t>(NumDevices(), 0);
};

Memory& GetMemory() {
  static Memory* memory = new Memory;
  return *memory;
}

// What is enqueued may use memory that is about to go: as on a device, freeing waits.
void FinishAllDevices() {
  for (int device = 0; device < NumDevices(); ++device) WorkQueue::Get().FinishDevice(device);
}

}  // namespace

MemoryRange FindMemory(const void* address) { return GetMemory().Find(address); }

DeviceMemoryAccess::DeviceMemoryAccess() { GetMemory().BeginAccess(); }
DeviceMemoryAccess::~DeviceMemoryAccess() { GetMemory().EndAccess(); }

void CheckAllGuards() {
  const DeviceMemoryAccess access;
  GetMemory().CheckAll();
}

}  // namespace qst::cuda_shim

using namespace qst::cuda_shim;  // NOLINT: the API's functions have no namespace

cudaError_t cudaMalloc(void** address, std::size_t bytes) {
  if (address == nullptr) return SetError(cudaErrorInvalidValue);
  if (const cudaError_t error = CheckNotCapturing(); error != cudaSuccess) return SetError(error);
  *address = nullptr;
  if (bytes == 0) return cudaSuccess;
  const int device = CurrentDevice();
  const std::size_t used = GetMemory().UsedBytes(device);
  const std::size_t total = DeviceMemoryBytes();
  if (used > total || bytes > total - used) return SetError(cudaErrorMemoryAllocation);
  *address = GetMemory().Allocate(MemoryKind::kDevice, device, bytes);
  return SetError(*address == nullptr ? cudaErrorMemoryAllocation : cudaSuccess);
}

cudaError_t cudaFree(void* address) {
  if (const cudaError_t error = CheckNotCapturing(); error != cudaSuccess) return SetError(error);
  if (address == nullptr) return cudaSuccess;
  FinishAllDevices();
  return SetError(GetMemory().Free(MemoryKind::kDevice, address) ? cudaSuccess : cudaErrorInvalidValue);
}

cudaError_t cudaHostAlloc(void** address, std::size_t bytes, unsigned int flags) {
  if (address == nullptr ||
      (flags & ~(cudaHostAllocPortable | cudaHostAllocMapped | cudaHostAllocWriteCombined)) != 0) {
    return SetError(cudaErrorInvalidValue);
  }
  if (const cudaError_t error = CheckNotCapturing(); error != cudaSuccess) return SetError(error);
  *address = nullptr;
  if (bytes == 0) return cudaSuccess;
  *address = GetMemory().Allocate(MemoryKind::kPinned, CurrentDevice(), bytes);
  return SetError(*address == nullptr ? cudaErrorMemoryAllocation : cudaSuccess);
}

cudaError_t cudaMallocHost(void** address, std::size_t bytes) {
  return cudaHostAlloc(address, bytes, cudaHostAllocDefault);
}

cudaError_t cudaFreeHost(void* address) {
  if (const cudaError_t error = CheckNotCapturing(); error != cudaSuccess) return SetError(error);
  if (address == nullptr) return cudaSuccess;
  FinishAllDevices();
  return SetError(GetMemory().Free(MemoryKind::kPinned, address) ? cudaSuccess : cudaErrorInvalidValue);
}

cudaError_t cudaHostRegister(void* address, std::size_t bytes, unsigned int flags) {
  if (address == nullptr || bytes == 0 ||
      (flags & ~(cudaHostRegisterPortable | cudaHostRegisterMapped | cudaHostRegisterReadOnly)) != 0) {
    return SetError(cudaErrorInvalidValue);
  }
  if (const cudaError_t error = CheckNotCapturing(); error != cudaSuccess) return SetError(error);
  return SetError(GetMemory().Register(address, bytes) ? cudaSuccess : cudaErrorHostMemoryAlreadyRegistered);
}

cudaError_t cudaHostUnregister(void* address) {
  if (const cudaError_t error = CheckNotCapturing(); error != cudaSuccess) return SetError(error);
  FinishAllDevices();
  return SetError(GetMemory().Unregister(address) ? cudaSuccess : cudaErrorHostMemoryNotRegistered);
}

cudaError_t cudaMemGetInfo(std::size_t* free_bytes, std::size_t* total_bytes) {
  if (free_bytes == nullptr || total_bytes == nullptr) return SetError(cudaErrorInvalidValue);
  const std::size_t used = GetMemory().UsedBytes(CurrentDevice());
  *total_bytes = DeviceMemoryBytes();
  *free_bytes = used < *total_bytes ? *total_bytes - used : 0;
  return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* address) {
  if (attributes == nullptr) return SetError(cudaErrorInvalidValue);
  const MemoryRange range = FindMemory(address);
  void* pointer = const_cast<void*>(address);
  switch (range.kind) {
    case MemoryKind::kPageable:
      *attributes = {cudaMemoryTypeUnregistered, -2, nullptr, pointer};
      break;
    case MemoryKind::kPinned:
      *attributes = {cudaMemoryTypeHost, range.device, pointer, pointer};
      break;
    case MemoryKind::kDevice:
      *attributes = {cudaMemoryTypeDevice, range.device, pointer, nullptr};
      break;
  }
  return cudaSuccess;
}
