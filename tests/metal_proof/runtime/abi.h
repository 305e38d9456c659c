// What the three sides of the proof machine agree on: the Python driver (ctypes), the runtime (scheduler and
// checker, one shared library) and every compiled kernel.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace proof {

constexpr uint32_t kLanes = 32;
constexpr uint32_t kMaxThreads = 1024;
constexpr uint32_t kMaxThreadgroupBytes = 32 * 1024;

// The two address spaces the checker keeps apart; 1 << space is the bit in metal::mem_flags.
enum Space : uint32_t { kDevice = 0, kThreadgroup = 1 };

enum class Scope : int32_t { Simdgroup = 0, Threadgroup = 1 };

// Mirrored by findings.py.
enum class Kind : int32_t {
  Race = 1,
  OutOfBounds,
  Uninitialised,
  WriteToInput,
  DivergentBarrier,
  ThreadgroupMemory,
  InactiveLane,
  ArrayBound,
  DivisionByZero,
  TooLong,
  Misaligned,
};

enum class Role : int32_t { Input = 0, Output = 1, Constant = 2, Threadgroup = 3 };

// The values behind MSL's thread attributes, for the launcher in the compiled kernel.
struct Ids {
  uint32_t thread_position_in_grid[3];
  uint32_t thread_position_in_threadgroup[3];
  uint32_t threadgroup_position_in_grid[3];
  uint32_t threads_per_grid[3];
  uint32_t threadgroups_per_grid[3];
  uint32_t threads_per_threadgroup[3];           // smaller in the groups at the edge of the grid
  uint32_t dispatch_threads_per_threadgroup[3];  // as asked for
  uint32_t thread_index_in_threadgroup;
};

using ThreadFunction = void (*)(void* const* buffers, const Ids* ids);
using Combine = void (*)(void* const* slots, uint32_t lanes);

struct Buffer {
  void* data;
  uint64_t size;
  Role role;
  int32_t initialised;  // outputs: init_value was given
  uint64_t loaded, stored, unwritten;  // distinct bytes, filled in by a checked launch
};

// One thread's part in a finding: where it was in the code and in the grid.
struct Party {
  uint64_t place;  // in the kernel's image
  uint32_t thread;  // index in its threadgroup
  uint32_t group;   // linear index of the threadgroup
  uint32_t atomic, write, matrix;  // how it accessed
};

struct Finding {
  Kind kind;
  int32_t line;    // of the generated text, when the event knows it without debug information
  int32_t region;  // index of a buffer, or -1 - id of a threadgroup variable
  uint32_t bytes;
  int64_t offset;  // from the start of the region
  uint64_t count;  // the kind's own number: bytes asked for, threads missing, ...
  Party now, before;
};

struct Launch {
  ThreadFunction function;
  Buffer* buffers;
  int32_t buffer_count;
  uint32_t grid[3], threadgroup[3];
  uint64_t seed;  // 0: threads in order; otherwise a random schedule
  int32_t check;
  int32_t finding_capacity, finding_count;
  Finding* findings;
  uint64_t access_limit;  // a checked launch stops after so many accesses
  uint64_t threadgroup_bytes, partial_collectives;
};

}  // namespace proof

extern "C" {
// Called by the driver. Not re-entrant: the driver holds a lock.
void proof_launch(proof::Launch* launch);
const char* proof_threadgroup_name(int id);
int proof_flush(int on);  // subnormals of this thread; what it was before, or -1 where that can't be set

// Called by kernels.
void proof_barrier(proof::Scope scope, uint32_t flags, int line);
void proof_collective(proof::Combine combine, void* slot, int line);
void proof_inactive_lane(int line);
uint32_t proof_lane();
void* proof_threadgroup_memory(int id, size_t size, size_t align, const char* name);
void proof_atomic(const void* address, uint32_t size, uint32_t read, uint32_t write);
void proof_matrix_access(int inside);
}
