// Atomics. Threads are fibres on one processor thread, so plain arithmetic is atomic enough; what matters is that
// the checker hears of each access as an atomic one, and that the arithmetic itself is not instrumented.
#pragma once

#include "simd.h"

namespace metal {

enum memory_order { memory_order_relaxed };
enum thread_scope { thread_scope_thread, thread_scope_simdgroup, thread_scope_threadgroup, thread_scope_device };

// Only these types have atomics on Metal.
template <typename T>
inline constexpr bool is_atomic_v = std::is_same<T, int>::value || std::is_same<T, uint>::value ||
                                    std::is_same<T, bool>::value || std::is_same<T, float>::value ||
                                    std::is_same<T, ulong>::value;

template <typename T>
struct atomic {
  static_assert(is_atomic_v<T>, "Metal has atomics of int, uint, bool, float and ulong only");
  T value;
  atomic() = default;
  atomic(const atomic&) = delete;
  atomic& operator=(const atomic&) = delete;
};
typedef atomic<int> atomic_int;
typedef atomic<uint> atomic_uint;
typedef atomic<bool> atomic_bool;
typedef atomic<float> atomic_float;
typedef atomic<ulong> atomic_ulong;

#if defined(PROOF_CHECK)
#define MSL_ATOMIC_ACCESS(object, read, write) \
  proof_atomic(const_cast<const atomic<T>*>(object), sizeof(T), read, write)
#else
#define MSL_ATOMIC_ACCESS(object, read, write) ((void)0)
#endif
#define MSL_PLAIN __attribute__((no_sanitize("thread"), noinline))

namespace detail {
template <typename T>
MSL_PLAIN T atomic_read(const volatile T* at) { return *at; }
template <typename T>
MSL_PLAIN void atomic_write(volatile T* at, T value) { *at = value; }
}  // namespace detail

template <typename T>
inline T atomic_load_explicit(const volatile atomic<T>* object, memory_order) {
  MSL_ATOMIC_ACCESS(object, 1, 0);
  return detail::atomic_read(&object->value);
}
template <typename T>
inline void atomic_store_explicit(volatile atomic<T>* object, std::common_type_t<T> value, memory_order) {
  MSL_ATOMIC_ACCESS(object, 0, 1);
  detail::atomic_write(&object->value, value);
}

#define MSL_ATOMIC_UPDATE(name, expression)                                                                     \
  template <typename T>                                                                                         \
  inline T name(volatile atomic<T>* object, std::common_type_t<T> operand, memory_order) {                      \
    MSL_ATOMIC_ACCESS(object, 1, 1);                                                                               \
    T old = detail::atomic_read(&object->value);                                                                        \
    detail::atomic_write(&object->value, T(expression));                                                                \
    return old;                                                                                                 \
  }
MSL_ATOMIC_UPDATE(atomic_exchange_explicit, operand)
MSL_ATOMIC_UPDATE(atomic_fetch_add_explicit, old + operand)
MSL_ATOMIC_UPDATE(atomic_fetch_sub_explicit, old - operand)
MSL_ATOMIC_UPDATE(atomic_fetch_and_explicit, old & operand)
MSL_ATOMIC_UPDATE(atomic_fetch_or_explicit, old | operand)
MSL_ATOMIC_UPDATE(atomic_fetch_xor_explicit, old ^ operand)
MSL_ATOMIC_UPDATE(atomic_fetch_min_explicit, operand < old ? operand : old)
MSL_ATOMIC_UPDATE(atomic_fetch_max_explicit, operand > old ? operand : old)

template <typename T>
inline bool atomic_compare_exchange_weak_explicit(volatile atomic<T>* object, T* expected,
                                                  std::common_type_t<T> desired, memory_order, memory_order) {
  MSL_ATOMIC_ACCESS(object, 1, 1);
  T old = detail::atomic_read(&object->value);
  bool equal = __builtin_memcmp(&old, expected, sizeof(T)) == 0;
  if (equal) detail::atomic_write(&object->value, desired);
  *expected = old;
  return equal;
}

}  // namespace metal
