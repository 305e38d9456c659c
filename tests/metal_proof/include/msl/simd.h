// Barriers and the operations of a simdgroup. Each lane leaves its value in a slot on its stack and blocks; once
// every lane that can come has come, the runtime calls `combine` once for all of them.
#pragma once

#include "math.h"
#include "runtime/abi.h"

namespace metal {

enum class mem_flags : uint {
  mem_none = 0,
  mem_device = 1,
  mem_threadgroup = 2,
  mem_texture = 4,
  mem_threadgroup_imageblock = 8,
};
inline constexpr mem_flags operator|(mem_flags a, mem_flags b) { return mem_flags(uint(a) | uint(b)); }

// The call's line tells one barrier from another; unlike a return address it survives unrolling and inlining.
inline void threadgroup_barrier(mem_flags flags, int line = __builtin_LINE()) {
  proof_barrier(proof::Scope::Threadgroup, uint(flags), line);
}
inline void simdgroup_barrier(mem_flags flags, int line = __builtin_LINE()) {
  proof_barrier(proof::Scope::Simdgroup, uint(flags), line);
}

namespace detail {

template <typename T>
struct exchange_slot {
  T in, fill, out;
  uint argument;
};

template <typename T>
using slots = exchange_slot<T>* const*;

template <typename Operation, typename T>
void combine(void* const* raw, uint32_t lanes) {
  Operation::apply(reinterpret_cast<slots<T>>(raw), lanes);
}

template <typename Operation, typename T>
inline T exchange(const T& value, const T& fill, uint argument, int line) {
  exchange_slot<T> slot{value, fill, value, argument};
  proof_collective(&combine<Operation, T>, &slot, line);
  if constexpr (Operation::needs_source) {
    if (slot.argument == ~0u) proof_inactive_lane(line);
  }
  return slot.out;
}

// Reductions and scans over the lanes that take part.
template <typename Op>
struct reduce {
  static constexpr bool needs_source = false;
  template <typename T>
  static void apply(slots<T> slot, uint32_t lanes) {
    uint32_t rest = lanes & (lanes - 1);
    T total = slot[__builtin_ctz(lanes)]->in;
    for (; rest; rest &= rest - 1) total = Op::call(total, slot[__builtin_ctz(rest)]->in);
    for (rest = lanes; rest; rest &= rest - 1) slot[__builtin_ctz(rest)]->out = total;
  }
};
template <typename Op, bool Inclusive>
struct scan {
  static constexpr bool needs_source = false;
  template <typename T>
  static void apply(slots<T> slot, uint32_t lanes) {
    T total = slot[__builtin_ctz(lanes)]->fill;
    for (; lanes; lanes &= lanes - 1) {
      exchange_slot<T>* own = slot[__builtin_ctz(lanes)];
      T next = Op::call(total, own->in);
      own->out = Inclusive ? next : total;
      total = next;
    }
  }
};

struct op_sum { template <typename T> static T call(const T& a, const T& b) { return T(a + b); } };
struct op_product { template <typename T> static T call(const T& a, const T& b) { return T(a * b); } };
struct op_min { template <typename T> static T call(const T& a, const T& b) { return min(a, b); } };
struct op_max { template <typename T> static T call(const T& a, const T& b) { return max(a, b); } };
struct op_and { template <typename T> static T call(const T& a, const T& b) { return T(a & b); } };
struct op_or { template <typename T> static T call(const T& a, const T& b) { return T(a | b); } };
struct op_xor { template <typename T> static T call(const T& a, const T& b) { return T(a ^ b); } };

}  // namespace detail

#define MSL_SIMD_REDUCE(name, op)                                \
  template <typename T>                                          \
  inline T name(T value, int line = __builtin_LINE()) {          \
    return detail::exchange<detail::reduce<detail::op>>(value, value, 0, line);          \
  }
MSL_SIMD_REDUCE(simd_sum, op_sum)
MSL_SIMD_REDUCE(simd_product, op_product)
MSL_SIMD_REDUCE(simd_min, op_min)
MSL_SIMD_REDUCE(simd_max, op_max)
MSL_SIMD_REDUCE(simd_and, op_and)
MSL_SIMD_REDUCE(simd_or, op_or)
MSL_SIMD_REDUCE(simd_xor, op_xor)

#define MSL_SIMD_SCAN(name, op, inclusive, start)                      \
  template <typename T>                                                \
  inline T name(T value, int line = __builtin_LINE()) {                \
    return detail::exchange<detail::scan<detail::op, inclusive>>(value, T(start), 0, line);    \
  }
MSL_SIMD_SCAN(simd_prefix_inclusive_sum, op_sum, true, 0)
MSL_SIMD_SCAN(simd_prefix_exclusive_sum, op_sum, false, 0)
MSL_SIMD_SCAN(simd_prefix_inclusive_product, op_product, true, 1)
MSL_SIMD_SCAN(simd_prefix_exclusive_product, op_product, false, 1)

namespace detail {

// Shuffles: `Lane` computes the source lane, or a negative number for "none: fill". Reading a lane that does not
// take part is undefined on Metal: it gives all ones here (a NaN) and a finding.
template <typename Lane>
struct shuffle {
  static constexpr bool needs_source = true;
  template <typename T>
  static void apply(slots<T> slot, uint32_t lanes) {
    for (uint32_t rest = lanes; rest; rest &= rest - 1) {
      int lane = __builtin_ctz(rest);
      exchange_slot<T>* own = slot[lane];
      int source = Lane::source(lane, int(own->argument));
      if (source < 0) {
        own->out = own->fill;
      } else if (source < 32 && (lanes >> source & 1)) {
        own->out = slot[source]->in;
      } else {
        __builtin_memset(static_cast<void*>(&own->out), 0xFF, sizeof own->out);
        own->argument = ~0u;
      }
    }
  }
};

struct lane_at { static int source(int, int argument) { return argument; } };
struct lane_xor { static int source(int lane, int mask) { return lane ^ mask; } };
// Beyond the edge these leave the lane its fill value, which for the plain shuffles is its own.
struct lane_up { static int source(int lane, int delta) { return lane - delta; } };
struct lane_down { static int source(int lane, int delta) { return lane + delta < 32 ? lane + delta : -1; } };
struct lane_rotate_up { static int source(int lane, int delta) { return (lane - delta) & 31; } };
struct lane_rotate_down { static int source(int lane, int delta) { return (lane + delta) & 31; } };
struct lane_first {
  static constexpr bool needs_source = false;
  template <typename T>
  static void apply(slots<T> slot, uint32_t lanes) {
    T value = slot[__builtin_ctz(lanes)]->in;
    for (uint32_t rest = lanes; rest; rest &= rest - 1) slot[__builtin_ctz(rest)]->out = value;
  }
};

}  // namespace detail

#define MSL_SIMD_SHUFFLE(name, lane)                                              \
  template <typename T>                                                           \
  inline T name(T value, ushort argument, int line = __builtin_LINE()) {          \
    return detail::exchange<detail::shuffle<detail::lane>>(value, value, argument, line);                 \
  }
MSL_SIMD_SHUFFLE(simd_shuffle, lane_at)
MSL_SIMD_SHUFFLE(simd_broadcast, lane_at)
MSL_SIMD_SHUFFLE(simd_shuffle_xor, lane_xor)
MSL_SIMD_SHUFFLE(simd_shuffle_up, lane_up)
MSL_SIMD_SHUFFLE(simd_shuffle_down, lane_down)
MSL_SIMD_SHUFFLE(simd_shuffle_rotate_up, lane_rotate_up)
MSL_SIMD_SHUFFLE(simd_shuffle_rotate_down, lane_rotate_down)

template <typename T>
inline T simd_shuffle_and_fill_up(T value, T fill, ushort delta, int line = __builtin_LINE()) {
  return detail::exchange<detail::shuffle<detail::lane_up>>(value, fill, delta, line);
}
template <typename T>
inline T simd_shuffle_and_fill_down(T value, T fill, ushort delta, int line = __builtin_LINE()) {
  return detail::exchange<detail::shuffle<detail::lane_down>>(value, fill, delta, line);
}
template <typename T>
inline T simd_broadcast_first(T value, int line = __builtin_LINE()) {
  return detail::exchange<detail::lane_first>(value, value, 0, line);
}

namespace detail {

// Votes: one bit per lane that takes part.
struct vote {
  static constexpr bool needs_source = false;
  static void apply(slots<ulong> slot, uint32_t lanes) {
    ulong yes = 0;
    for (uint32_t rest = lanes; rest; rest &= rest - 1)
      if (slot[__builtin_ctz(rest)]->in) yes |= 1ul << __builtin_ctz(rest);
    for (uint32_t rest = lanes; rest; rest &= rest - 1) {
      exchange_slot<ulong>* own = slot[__builtin_ctz(rest)];
      own->out = yes;
      own->fill = lanes;
    }
  }
};
}  // namespace detail

struct simd_vote {
  typedef ulong vote_t;
  ulong bits;
  explicit operator vote_t() const { return bits; }
  bool all() const { return bits == 0xFFFFFFFFul; }
  bool any() const { return bits != 0; }
};
inline simd_vote simd_ballot(bool value, int line = __builtin_LINE()) {
  return {detail::exchange<detail::vote>(ulong(value), 0ul, 0, line)};
}
inline simd_vote simd_active_threads_mask(int line = __builtin_LINE()) { return simd_ballot(true, line); }
inline bool simd_any(bool value, int line = __builtin_LINE()) {
  return detail::exchange<detail::vote>(ulong(value), 0ul, 0, line) != 0;
}
inline bool simd_all(bool value, int line = __builtin_LINE()) {
  return detail::exchange<detail::vote>(ulong(!value), 0ul, 0, line) == 0;
}
namespace detail {
struct first_lane {
  static constexpr bool needs_source = false;
  static void apply(slots<uint> slot, uint32_t lanes) {
    for (uint32_t rest = lanes; rest; rest &= rest - 1) slot[__builtin_ctz(rest)]->out = rest == lanes;
  }
};
}  // namespace detail
inline bool simd_is_first(int line = __builtin_LINE()) { return detail::exchange<detail::first_lane>(0u, 0u, 0, line) != 0; }

}  // namespace metal
