#include "kernels/testing/cuda_shim/fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <boost/context/detail/fcontext.hpp>
#include <cstdio>
#include <cstdlib>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#endif

namespace qst::cuda_shim {
namespace {

using boost::context::detail::fcontext_t;
using boost::context::detail::jump_fcontext;
using boost::context::detail::make_fcontext;
using boost::context::detail::transfer_t;

// Only touched pages take memory. Sanitizers and unoptimised code need several times what a kernel takes on a device.
constexpr std::size_t kStackBytes = 256 * 1024;

}  // namespace

Fiber::Fiber() {
#if defined(__SANITIZE_THREAD__)
  sanitizer_state_ = __tsan_get_current_fiber();
#endif
}

Fiber::Fiber(void (*entry)(void*), void* argument, std::size_t index) : entry_(entry), argument_(argument) {
  const std::size_t page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  mapping_bytes_ = kStackBytes + page;
  void* mapping =
      mmap(nullptr, mapping_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping == MAP_FAILED || mprotect(mapping, page, PROT_NONE) != 0) {
    std::perror("CUDA shim: no memory for the stack of a simulated thread");
    std::abort();
  }
  mapping_ = static_cast<std::byte*>(mapping);
  stack_bottom_ = mapping_ + page;
  stack_bytes_ = kStackBytes - (index % 16) * 192;
  std::byte* top = mapping_ + page + stack_bytes_;
  context_ = make_fcontext(top, stack_bytes_, [](transfer_t transfer) {
    Fiber* from = static_cast<Fiber**>(transfer.data)[0];
    Fiber* self = static_cast<Fiber**>(transfer.data)[1];
    from->context_ = transfer.fctx;
    self->FinishSwitch(*from);
    self->entry_(self->argument_);
    std::abort();
  });
#if defined(__SANITIZE_THREAD__)
  sanitizer_state_ = __tsan_create_fiber(0);
#endif
}

Fiber::~Fiber() {
  if (mapping_ == nullptr) return;
#if defined(__SANITIZE_THREAD__)
  __tsan_destroy_fiber(sanitizer_state_);
#endif
#if defined(__SANITIZE_ADDRESS__)
  ASAN_UNPOISON_MEMORY_REGION(stack_bottom_, kStackBytes);
#endif
  munmap(mapping_, mapping_bytes_);
}

void Fiber::SwitchTo(Fiber& next) {
  Fiber* pair[2] = {this, &next};
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&sanitizer_state_, next.stack_bottom_, next.stack_bytes_);
#endif
#if defined(__SANITIZE_THREAD__)
  __tsan_switch_to_fiber(next.sanitizer_state_, 0);
#endif
  const transfer_t transfer = jump_fcontext(next.context_, pair);
  Fiber* from = static_cast<Fiber**>(transfer.data)[0];
  from->context_ = transfer.fctx;
  FinishSwitch(*from);
}

// First thing on the stack that was switched to.
void Fiber::FinishSwitch([[maybe_unused]] Fiber& from) {
#if defined(__SANITIZE_ADDRESS__)
  // Tells where the stack left behind lies, which for the OS thread's own stack nobody else knows.
  __sanitizer_finish_switch_fiber(sanitizer_state_, &from.stack_bottom_, &from.stack_bytes_);
#endif
}

}  // namespace qst::cuda_shim
