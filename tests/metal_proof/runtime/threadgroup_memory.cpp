// Threadgroup memory: variables are laid out when the first thread of a group declares them, with a gap after
// each, so that running past the end of one does not look like using the next.

#include <stdio.h>
#include <string.h>

#include "machine.h"

namespace proof {

namespace {

constexpr size_t kGap = 4096;
constexpr size_t kArena = kMaxThreadgroupBytes + (kMaxVariables + 1) * (kGap + 64);

alignas(64) char arena[kArena];
Variable variables[kMaxVariables];
uint64_t serial = 0;
size_t used = 0;    // bytes of the arena
size_t wanted = 0;  // bytes the kernel asked for, as Metal counts them

}  // namespace

void reset_threadgroup_memory() {
  ++serial;
  used = kGap;
  wanted = 0;
}

bool in_threadgroup_arena(uintptr_t address) { return address - threadgroup_arena_base() < kArena; }
size_t threadgroup_arena_size() { return kArena; }
uintptr_t threadgroup_arena_base() { return reinterpret_cast<uintptr_t>(arena); }
const Variable& threadgroup_variable(int id) { return variables[id]; }

int threadgroup_variable_near(uintptr_t address) {
  static int last = 0;
  const Variable& again = variables[last];
  if (again.serial == serial && address - reinterpret_cast<uintptr_t>(again.base) < again.size) return last;
  int nearest = -1;
  uintptr_t best = ~uintptr_t{0};
  for (int id = 0; id < kMaxVariables; ++id) {
    if (variables[id].serial != serial) continue;
    uintptr_t base = reinterpret_cast<uintptr_t>(variables[id].base), end = base + variables[id].size;
    uintptr_t distance = address < base ? base - address : address < end ? 0 : address - end + 1;
    if (distance < best) best = distance, nearest = id;
  }
  if (nearest >= 0) last = nearest;
  return nearest;
}

}  // namespace proof

using namespace proof;

extern "C" const char* proof_threadgroup_name(int id) { return variables[id].name; }

extern "C" void* proof_threadgroup_memory(int id, size_t size, size_t align, const char* name) {
  Variable& variable = variables[id];
  if (variable.serial == serial) return variable.base;
  wanted = (wanted + align - 1) / align * align + size;
  if (wanted > machine.launch->threadgroup_bytes) machine.launch->threadgroup_bytes = wanted;
  if (wanted > kMaxThreadgroupBytes) {
    Finding finding{};
    finding.kind = Kind::ThreadgroupMemory;
    finding.count = wanted;
    finding.now = party(machine.index_of(machine.current), 0);
    report(finding);
    stop_launch();
  }
  used = (used + 63) / 64 * 64;
  variable = {name, serial, arena + used, size};
  used += size + kGap;
  // Whatever was there before is unknown on a GPU; all ones is a NaN in every float type.
  memset(variable.base, 0xFF, size);
  return variable.base;
}
