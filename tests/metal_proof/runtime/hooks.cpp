// The functions that `-fsanitize=thread` and `-fsanitize=bounds,integer-divide-by-zero` make the compiler call.
// Only the instrumentation is used; the sanitizers' own libraries are never linked.

#include <string.h>

#include "check.h"
#include "machine.h"

using namespace proof;

namespace {

// A finding from the arithmetic hooks has a place but no address; the access that would follow is not made.
void report_here(Kind kind, uint64_t value, void* return_address) {
  if (machine.current == nullptr) return;
  Finding finding{};
  finding.kind = kind;
  finding.count = value;
  finding.now = party(machine.index_of(machine.current), place_of(return_address));
  report(finding);
  stop_launch();
}

}  // namespace

#define PROOF_PLACE place_of(__builtin_return_address(0))
#define PROOF_HOOK(name, size, write, aligned)                                                   \
  extern "C" void __tsan_##name(void* address) {                                                 \
    check_access(reinterpret_cast<uintptr_t>(address), size, {write, !write, false, aligned}, PROOF_PLACE); \
  }
#define PROOF_HOOKS(size)                                  \
  PROOF_HOOK(read##size, size, false, true)                \
  PROOF_HOOK(write##size, size, true, true)                \
  PROOF_HOOK(volatile_read##size, size, false, true)       \
  PROOF_HOOK(volatile_write##size, size, true, true)       \
  PROOF_HOOK(unaligned_read##size, size, false, false)     \
  PROOF_HOOK(unaligned_write##size, size, true, false)

PROOF_HOOKS(1)
PROOF_HOOKS(2)
PROOF_HOOKS(4)
PROOF_HOOKS(8)
PROOF_HOOKS(16)

extern "C" void __tsan_read_range(void* address, uint64_t size) {
  check_access(reinterpret_cast<uintptr_t>(address), size, {false, true, false, false}, PROOF_PLACE);
}
extern "C" void __tsan_write_range(void* address, uint64_t size) {
  check_access(reinterpret_cast<uintptr_t>(address), size, {true, false, false, false}, PROOF_PLACE);
}

// clang turns copies and fills of structs into these.
extern "C" void* __tsan_memcpy(void* to, const void* from, size_t size) {
  check_access(reinterpret_cast<uintptr_t>(from), size, {false, true, false, false}, PROOF_PLACE);
  check_access(reinterpret_cast<uintptr_t>(to), size, {true, false, false, false}, PROOF_PLACE);
  return memcpy(to, from, size);
}
extern "C" void* __tsan_memmove(void* to, const void* from, size_t size) {
  check_access(reinterpret_cast<uintptr_t>(from), size, {false, true, false, false}, PROOF_PLACE);
  check_access(reinterpret_cast<uintptr_t>(to), size, {true, false, false, false}, PROOF_PLACE);
  return memmove(to, from, size);
}
extern "C" void* __tsan_memset(void* to, int value, size_t size) {
  check_access(reinterpret_cast<uintptr_t>(to), size, {true, false, false, false}, PROOF_PLACE);
  return memset(to, value, size);
}

extern "C" void __tsan_init() {}
extern "C" void __tsan_func_entry(void*) {}
extern "C" void __tsan_func_exit() {}

extern "C" void __ubsan_handle_out_of_bounds(void*, uint64_t index) {
  report_here(Kind::ArrayBound, index, __builtin_return_address(0));
}
extern "C" void __ubsan_handle_divrem_overflow(void*, uint64_t, uint64_t) {
  report_here(Kind::DivisionByZero, 0, __builtin_return_address(0));
}
