// Metal Shading Language for the parse pass: declarations only, in clang's "C++ for OpenCL 2021", where global,
// local, constant and private are real address spaces (tests/metal_proof/README.md). Unqualified pointers come out as
// `__generic`, which parse.py looks for.
#pragma once
#pragma OPENCL EXTENSION cl_khr_fp16 : enable

// Names of OpenCL's own that are ordinary identifiers in Metal, or mean something else there.
#define global msl_global
#define local msl_local
#define private msl_private
#define atomic_int msl_atomic_int
#define atomic_uint msl_atomic_uint
#define atomic_float msl_atomic_float
#define atomic_ulong msl_atomic_ulong
#define memory_order msl_memory_order
#define memory_order_relaxed msl_memory_order_relaxed
#define kernel
#define device __global
#define threadgroup __local
#define thread __private

#include "types.h"

namespace metal {

#define METAL_FUNC inline
#define __METAL_VERSION__ 310
#define MSL_FLOATING(T) enable_if_t<is_floating_point_v<element_t<T>>, T>

// Math: one template per function, over scalars and vectors of one type. bfloat counts as a scalar.
#define MSL_1(name) template <typename T> T name(T);
#define MSL_2(name) template <typename T> T name(T, identity_t<T>);
#define MSL_3(name) template <typename T> T name(T, identity_t<T>, identity_t<T>);
#define MSL_MATH_1(X)                                                                                           \
  X(exp) X(exp2) X(exp10) X(log) X(log2) X(log10) X(sqrt) X(rsqrt) X(sin) X(cos) X(tan) X(sinh) X(cosh) X(tanh) \
  X(asin) X(acos) X(atan) X(sinpi) X(cospi) X(floor) X(ceil) X(round) X(rint) X(trunc) X(fabs) X(fract)         \
  X(saturate) X(sign) X(abs)
#define MSL_MATH_2(X) X(pow) X(powr) X(fmod) X(fmin) X(fmax) X(atan2) X(copysign) X(fdim) X(step) X(min) X(max)
#define MSL_MATH_3(X) X(fma) X(mad) X(clamp) X(mix)
MSL_MATH_1(MSL_1)
MSL_MATH_2(MSL_2)
MSL_MATH_3(MSL_3)
#define MSL_USING(name) using metal::name;
namespace fast { MSL_MATH_1(MSL_USING) MSL_MATH_2(MSL_USING) MSL_MATH_3(MSL_USING) }
namespace precise { MSL_MATH_1(MSL_USING) MSL_MATH_2(MSL_USING) MSL_MATH_3(MSL_USING) }

template <typename T> truth_t<T> isnan(T);
template <typename T> truth_t<T> isinf(T);
template <typename T> truth_t<T> isfinite(T);
template <typename T> truth_t<T> signbit(T);
template <typename T> bool any(T);
template <typename T> bool all(T);
template <typename T, typename B> T select(T, T, B);
template <typename T> element_t<T> dot(T, T);
template <typename T> element_t<T> length(T);
template <typename T> element_t<T> length_squared(T);
float ldexp(float, int);
float frexp(float, thread int&);
float modf(float, thread float&);
float sincos(float, thread float&);
MSL_1(popcount) MSL_1(clz) MSL_1(ctz) MSL_1(reverse_bits)
MSL_2(rotate) MSL_2(mulhi) MSL_2(absdiff)
template <typename T> T extract_bits(T, uint, uint);
template <typename T> T insert_bits(T, T, uint, uint);

// Barriers and simdgroup operations.
enum class mem_flags : uint {
  mem_none = 0,
  mem_device = 1,
  mem_threadgroup = 2,
  mem_texture = 4,
  mem_threadgroup_imageblock = 8,
};
mem_flags operator|(mem_flags, mem_flags);
void threadgroup_barrier(mem_flags);
void simdgroup_barrier(mem_flags);
MSL_1(simd_sum) MSL_1(simd_product) MSL_1(simd_min) MSL_1(simd_max)
MSL_1(simd_and) MSL_1(simd_or) MSL_1(simd_xor) MSL_1(simd_broadcast_first)
MSL_1(simd_prefix_inclusive_sum) MSL_1(simd_prefix_exclusive_sum)
MSL_1(simd_prefix_inclusive_product) MSL_1(simd_prefix_exclusive_product)
#define MSL_SHUFFLE(name) template <typename T> T name(T, ushort);
MSL_SHUFFLE(simd_shuffle) MSL_SHUFFLE(simd_broadcast) MSL_SHUFFLE(simd_shuffle_xor)
MSL_SHUFFLE(simd_shuffle_up) MSL_SHUFFLE(simd_shuffle_down)
MSL_SHUFFLE(simd_shuffle_rotate_up) MSL_SHUFFLE(simd_shuffle_rotate_down)
template <typename T> T simd_shuffle_and_fill_up(T, T, ushort);
template <typename T> T simd_shuffle_and_fill_down(T, T, ushort);
struct simd_vote {
  typedef ulong vote_t;
  explicit operator vote_t() const;
  bool all() const;
  bool any() const;
};
simd_vote simd_ballot(bool);
simd_vote simd_active_threads_mask();
bool simd_any(bool);
bool simd_all(bool);
bool simd_is_first();

// Atomics, in the two memories that have them.
enum memory_order { memory_order_relaxed };
template <typename T>
struct atomic {
  T value;
};
typedef atomic<int> atomic_int;
typedef atomic<uint> atomic_uint;
typedef atomic<bool> atomic_bool;
typedef atomic<float> atomic_float;
typedef atomic<ulong> atomic_ulong;
#define MSL_ATOMIC(space)                                                                                        \
  template <typename T> T atomic_load_explicit(const volatile space atomic<T>*, memory_order);                   \
  template <typename T> void atomic_store_explicit(volatile space atomic<T>*, identity_t<T>, memory_order);      \
  template <typename T> T atomic_exchange_explicit(volatile space atomic<T>*, identity_t<T>, memory_order);      \
  template <typename T> T atomic_fetch_add_explicit(volatile space atomic<T>*, identity_t<T>, memory_order);     \
  template <typename T> T atomic_fetch_sub_explicit(volatile space atomic<T>*, identity_t<T>, memory_order);     \
  template <typename T> T atomic_fetch_and_explicit(volatile space atomic<T>*, identity_t<T>, memory_order);     \
  template <typename T> T atomic_fetch_or_explicit(volatile space atomic<T>*, identity_t<T>, memory_order);      \
  template <typename T> T atomic_fetch_xor_explicit(volatile space atomic<T>*, identity_t<T>, memory_order);     \
  template <typename T> T atomic_fetch_min_explicit(volatile space atomic<T>*, identity_t<T>, memory_order);     \
  template <typename T> T atomic_fetch_max_explicit(volatile space atomic<T>*, identity_t<T>, memory_order);     \
  template <typename T>                                                                                          \
  bool atomic_compare_exchange_weak_explicit(volatile space atomic<T>*, thread T*, identity_t<T>, memory_order,  \
                                             memory_order);
MSL_ATOMIC(device)
MSL_ATOMIC(threadgroup)

// simdgroup matrices.
template <typename T, int C, int R>
struct simdgroup_matrix {
  simdgroup_matrix() = default;
  explicit simdgroup_matrix(T);
  thread vec<T, 2>& thread_elements();
};
typedef simdgroup_matrix<float, 8, 8> simdgroup_float8x8;
typedef simdgroup_matrix<half, 8, 8> simdgroup_half8x8;
typedef simdgroup_matrix<bfloat, 8, 8> simdgroup_bfloat8x8;
template <typename T, int C, int R> simdgroup_matrix<T, C, R> make_filled_simdgroup_matrix(identity_t<T>);
#define MSL_MATRIX(space)                                                                                     \
  template <typename T>                                                                                       \
  void simdgroup_load(thread simdgroup_matrix<T, 8, 8>&, const space T*, ulong = 8, ulong2 = 0, bool = false); \
  template <typename T>                                                                                       \
  void simdgroup_store(simdgroup_matrix<T, 8, 8>, space T*, ulong = 8, ulong2 = 0, bool = false);
MSL_MATRIX(device)
MSL_MATRIX(threadgroup)
template <typename D, typename A, typename B, typename C>
void simdgroup_multiply_accumulate(thread simdgroup_matrix<D, 8, 8>&, simdgroup_matrix<A, 8, 8>,
                                   simdgroup_matrix<B, 8, 8>, simdgroup_matrix<C, 8, 8>);
template <typename D, typename A, typename B>
void simdgroup_multiply(thread simdgroup_matrix<D, 8, 8>&, simdgroup_matrix<A, 8, 8>, simdgroup_matrix<B, 8, 8>);
template <typename T>
simdgroup_matrix<T, 8, 8> operator*(simdgroup_matrix<T, 8, 8>, simdgroup_matrix<T, 8, 8>);

}  // namespace metal

template <typename To, typename From> To as_type(From);

using namespace metal;

#include "mlx_utils.h"
