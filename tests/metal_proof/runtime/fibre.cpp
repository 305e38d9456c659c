#include "fibre.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "abi.h"

namespace proof {

namespace {

char* stacks = nullptr;

// Stacks stay mapped between launches: touching fresh pages costs more than running a small kernel.
char* stack_top(uint32_t index) {
  if (stacks == nullptr) {
    void* memory = mmap(nullptr, kStackBytes * kMaxThreads, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) {
      fprintf(stderr, "proof machine: cannot map %zu bytes of fibre stacks\n", kStackBytes * kMaxThreads);
      abort();
    }
    stacks = static_cast<char*>(memory);
    // The lowest page of each stack stops an overflow before it reaches a neighbour.
    for (uint32_t i = 0; i < kMaxThreads; ++i) mprotect(stacks + i * kStackBytes, 4096, PROT_NONE);
  }
  // Stacks at one alignment would all compete for the same lines of the data cache.
  return stacks + (index + 1) * kStackBytes - 64 - (index % 61) * 64;
}

}  // namespace

bool in_stack(uint32_t index, uintptr_t address) {
  return address - reinterpret_cast<uintptr_t>(stacks) - index * kStackBytes < kStackBytes;
}

#if defined(__x86_64__) && !defined(PROOF_PORTABLE_SWITCH)

extern "C" void proof_switch(void** save, void* load);
asm(R"(
.text
.globl proof_switch
.type proof_switch, @function
proof_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size proof_switch, .-proof_switch
)");

void switch_context(Context& from, Context& to) { proof_switch(&from.stack_pointer, to.stack_pointer); }

void prepare_context(Context& context, uint32_t index, void (*entry)()) {
  // Six registers, then the address `ret` jumps to; the ABI wants rsp % 16 == 8 on entry to a function.
  void** top = reinterpret_cast<void**>(stack_top(index));
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(entry);
  top -= 6;
  context.stack_pointer = top;
}

#else

void switch_context(Context& from, Context& to) { swapcontext(&from.registers, &to.registers); }

void prepare_context(Context& context, uint32_t index, void (*entry)()) {
  char* top = stack_top(index);
  char* bottom = stacks + index * kStackBytes;
  getcontext(&context.registers);
  context.registers.uc_stack.ss_sp = bottom;
  context.registers.uc_stack.ss_size = static_cast<size_t>(top - bottom);
  context.registers.uc_link = nullptr;
  makecontext(&context.registers, entry, 0);
}

#endif

}  // namespace proof
