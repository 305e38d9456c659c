// One fibre per Metal thread: its own stack, switched by hand.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace proof {

constexpr size_t kStackBytes = 128 * 1024;

#if defined(__x86_64__) && !defined(PROOF_PORTABLE_SWITCH)

// The stack pointer is the whole context: the callee-saved registers lie on the stack it points to.
struct Context {
  void* stack_pointer;
};

#else

}  // namespace proof
#include <ucontext.h>
namespace proof {

// Portable and slower: swapcontext saves the signal mask with a system call each time.
struct Context {
  ucontext_t registers;
};

#endif

void switch_context(Context& from, Context& to);

// Arranges that the first switch to `context` calls `entry` on stack number `index`. `entry` must not return.
void prepare_context(Context& context, uint32_t index, void (*entry)());

// True for addresses in stack number `index`: memory private to the thread that runs on it.
bool in_stack(uint32_t index, uintptr_t address);

}  // namespace proof
