/* What every kernel shares: fixed-point arithmetic, exact to TensorFlow Lite Micro.
 *
 * No libc, no globals. Shapes are structs of int32_t alone, so that generated code and tests can
 * fill them in one order. Right shifts of negative numbers are arithmetic on every compiler that
 * this is for (gcc, clang, zig); nothing else here is implementation-defined. */
#ifndef ES_BASE_H
#define ES_BASE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
#define ES_BEGIN extern "C" {
#define ES_END }
#define ES_ALIGN(n) alignas(n)
#else
#define ES_BEGIN
#define ES_END
#define ES_ALIGN(n) _Alignas(n)
#endif
#define ES_NOINLINE __attribute__((noinline))
#define ES_UNUSED __attribute__((unused)) /* gcc counts a naked function's parameters so */

/* The compiler's own: a few bytes become a load and a store, more a call of memcpy or memset. */
#define es_copy(to, from, n_bytes) ((void)__builtin_memcpy((to), (from), (size_t)(n_bytes)))
#define es_fill(to, byte, n_bytes) ((void)__builtin_memset((to), (byte), (size_t)(n_bytes)))

static inline int32_t es_min(int32_t a, int32_t b) { return a < b ? a : b; }
static inline int32_t es_max(int32_t a, int32_t b) { return a > b ? a : b; }
static inline int32_t es_clamp(int32_t x, int32_t low, int32_t high) {
  return x < low ? low : x > high ? high : x;
}

/* Wrapping arithmetic: signed overflow is undefined in C, these wrap as the hardware does. */
static inline int32_t es_wrap_add(int32_t a, int32_t b) {
  return (int32_t)((uint32_t)a + (uint32_t)b);
}
static inline int32_t es_wrap_shl(int32_t x, int32_t n) { return (int32_t)((uint32_t)x << n); }

/* round(a * b / 2^31), ties upwards, by products of 16-bit halves; not both -2^31.
 *
 * With a = ah * 2^16 + al, al in [0, 2^16), and b alike, a * b / 2^16 rounded down is
 * (ah * bh + (al * bh >> 16) + (ah * bl >> 16)) * 2^16 + low, and no product leaves 32 bits. */
static inline int32_t es_doubling_high_mul_by_halves(int32_t a, int32_t b) {
  int32_t al = a & 0xFFFF, ah = a >> 16, bl = b & 0xFFFF, bh = b >> 16;
  int32_t left = al * bh, right = ah * bl;
  int32_t low = (int32_t)(((uint32_t)al * (uint32_t)bl) >> 16);
  low += (left & 0xFFFF) + (right & 0xFFFF);
  return 2 * (ah * bh + (left >> 16) + (right >> 16)) + ((low + (1 << 14)) >> 15);
}

/* round(a * b / 2^31), ties upwards, saturating the one product that does not fit. */
static inline int32_t es_doubling_high_mul(int32_t a, int32_t b) {
  if (a == b && a == INT32_MIN) return INT32_MAX;
#if defined(__thumb__) && !defined(__thumb2__)
  return es_doubling_high_mul_by_halves(a, b); /* the core has no long product */
#else
  int64_t product = (int64_t)a * b;
  int64_t nudge = product >= 0 ? (INT64_C(1) << 30) : (1 - (INT64_C(1) << 30));
  return (int32_t)((product + nudge) / (INT64_C(1) << 31));
#endif
}

/* round(x / 2^n), ties away from zero; 0 <= n <= 31. */
static inline int32_t es_rounding_shift_right(int32_t x, int32_t n) {
  int32_t mask = (int32_t)((UINT32_C(1) << n) - 1);
  int32_t rest = x & mask;
  int32_t threshold = (mask >> 1) + (x < 0 ? 1 : 0);
  return (x >> n) + (rest > threshold ? 1 : 0);
}

/* x * multiplier * 2^(shift - 31), rounded twice as the reference does: multiplier in
 * [2^30, 2^31) or 0, shift in [-31, 30], positive to the left (before the multiplication). */
static inline int32_t es_requantize(int32_t x, int32_t multiplier, int32_t shift) {
  int32_t left = shift > 0 ? shift : 0, right = shift > 0 ? 0 : -shift;
  int64_t product = (int64_t)es_wrap_shl(x, left) * multiplier; /* no saturation: below 2^62 */
  return es_rounding_shift_right((int32_t)((product + (INT64_C(1) << 30)) >> 31), right);
}

#endif
