// The state of one launch, shared by the scheduler and the checker.
#pragma once

#include "abi.h"
#include "fibre.h"

namespace proof {

enum class State : uint8_t { Ready, AtCollective, AtSimdgroupBarrier, AtThreadgroupBarrier, Done };

struct Fibre {
  Context context;
  State state;
  int line;       // of the call that blocked it
  uint32_t flags; // of the barrier it waits at
  Combine combine;
  void* slot;
  bool in_matrix; // its accesses are made by a simdgroup matrix operation
  Ids ids;
};

struct Machine {
  Launch* launch;
  Fibre fibres[kMaxThreads];
  Fibre* current;  // null while the scheduler itself runs
  Context scheduler;
  bool stopped;    // a finding ended this launch; no fibre runs again

  // The threadgroup being run.
  uint32_t group, threads, done;
  uint32_t ready[kLanes];                // by simdgroup: lanes that can run
  uint32_t active;                       // simdgroups with something left to do before the next barrier
  uint32_t epoch[2];                     // barriers passed that fence the space
  uint32_t simdgroup_epoch[kLanes][2];
  void* buffers[64];
  uint64_t random_state;

  uint32_t index_of(const Fibre* fibre) const { return static_cast<uint32_t>(fibre - fibres); }
  bool random() const { return launch->seed != 0; }
  uint32_t next_random();
  uint32_t pick(uint32_t count) { return random() ? next_random() % count : 0; }
};

extern Machine machine;

// Records a finding unless the same kind is already known at the same place.
void report(const Finding& finding);
Party party(uint32_t thread, uint64_t place);

// Ends the launch. From a fibre it does not return.
void stop_launch();

// Lets another thread run first; used to vary the interleaving at memory accesses.
void yield_fibre();

// Threadgroup memory (threadgroup_memory.cpp).
struct Variable {
  const char* name;
  uint64_t serial;  // of the threadgroup that declared it
  char* base;
  size_t size;
};
constexpr int kMaxVariables = 64;
void reset_threadgroup_memory();
bool in_threadgroup_arena(uintptr_t address);
size_t threadgroup_arena_size();
uintptr_t threadgroup_arena_base();
// The variable that holds `address`, or the nearest one; -1 if none is declared.
int threadgroup_variable_near(uintptr_t address);
const Variable& threadgroup_variable(int id);

// The checker (check.cpp).
void begin_check();
void end_check();

}  // namespace proof
