// What the checker remembers about every byte that a launch may write.
#pragma once

#include "machine.h"

namespace proof {

// One remembered access. Two are ordered if one thread made both, or if a barrier that fences their address
// space lies between them and both threads took part in it.
struct Access {
  uint32_t thread;           // threadgroup * 1024 + index in it
  uint32_t epoch;            // threadgroup barriers passed
  uint32_t simdgroup_epoch;  // simdgroup barriers passed
  uint32_t place;            // flags, and the place in the code relative to the kernel's image

  static constexpr uint32_t kValid = 1u << 31, kAtomic = 1u << 30, kMatrix = 1u << 29;
  static constexpr uint32_t kPlace = kMatrix - 1;

  bool valid() const { return place & kValid; }
  bool atomic() const { return place & kAtomic; }
  uint32_t group() const { return thread / kMaxThreads; }
  uint32_t simdgroup() const { return thread / kLanes; }
};

// A simdgroup matrix operation spreads its elements over lanes as it likes: what a lane then reads by hand may
// have been written by another, so for ordering it counts as another thread.
inline bool same_thread(const Access& a, const Access& b) {
  return a.thread == b.thread && ((a.place ^ b.place) & Access::kMatrix) == 0;
}

inline bool ordered(const Access& before, const Access& now) {
  if (same_thread(before, now)) return true;
  if (before.group() != now.group()) return false;
  if (before.epoch < now.epoch) return true;
  return before.simdgroup() == now.simdgroup() && before.simdgroup_epoch < now.simdgroup_epoch;
}

inline bool conflict(const Access& before, const Access& now) {
  return before.valid() && !(before.atomic() && now.atomic()) && !ordered(before, now);
}

inline uint32_t distance(const Access& a, const Access& b) {
  if (a.group() != b.group()) return 2;
  return a.simdgroup() != b.simdgroup() ? 1 : 0;
}

// Two accesses suffice to convict a later one if they are as far apart as any two so far: whichever thread
// comes next, it cannot be ordered after both unless it is ordered after all.
struct Pair {
  Access kept[2];

  void remember(const Access& now) {
    bool dead[2];
    for (int i = 0; i < 2; ++i) dead[i] = !kept[i].valid() || ordered(kept[i], now);
    if (dead[0] && dead[1]) {
      kept[0] = now;
      kept[1].place = 0;
    } else if (dead[0]) {
      kept[0] = now;
    } else if (dead[1] || distance(kept[0], now) > distance(kept[0], kept[1])) {
      kept[1] = now;
    }
  }
  const Access* find_conflict(const Access& now) const {
    for (const Access& access : kept)
      if (conflict(access, now)) return &access;
    return nullptr;
  }
};

struct Cell {
  Pair writes, reads;
};

}  // namespace proof
