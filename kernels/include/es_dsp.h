/* Instructions of Armv7E-M and Armv8-M with DSP extension, two 16-bit lanes to a register.
 *
 * Elsewhere portable functions stand in, so that a host runs the same kernels. Sums wrap, as the
 * instructions do. */
#ifndef ES_DSP_H
#define ES_DSP_H

#include "es_base.h"

#if defined(__ARM_FEATURE_SIMD32)
#include <arm_acle.h>

static inline int32_t es_smlad(int32_t a, int32_t b, int32_t sum) { return __smlad(a, b, sum); }
static inline int32_t es_sxtb16(int32_t x) { return (int32_t)__sxtb16((int8x4_t)x); }
static inline int32_t es_sxtb16_ror8(int32_t x) {
  return (int32_t)__sxtb16((int8x4_t)__ror((uint32_t)x, 8));
}
static inline int32_t es_sadd16(int32_t a, int32_t b) {
  return (int32_t)__sadd16((int16x2_t)a, (int16x2_t)b);
}

#else

static inline int32_t es_low16(int32_t x) { return ((x & 0xFFFF) ^ 0x8000) - 0x8000; }
static inline int32_t es_high16(int32_t x) { return x >> 16; }

static inline int32_t es_smlad(int32_t a, int32_t b, int32_t sum) {
  int32_t low = es_low16(a) * es_low16(b), high = es_high16(a) * es_high16(b);
  return es_wrap_add(es_wrap_add(low, high), sum);
}
static inline int32_t es_sxtb16(int32_t x) {
  uint32_t low = (uint32_t)(int32_t)(int8_t)x, high = (uint32_t)(int32_t)(int8_t)(x >> 16);
  return (int32_t)((low & 0xFFFF) | high << 16);
}
static inline int32_t es_sxtb16_ror8(int32_t x) {
  uint32_t bits = (uint32_t)x;
  return es_sxtb16((int32_t)(bits >> 8 | bits << 24));
}
static inline int32_t es_sadd16(int32_t a, int32_t b) {
  uint32_t low = (uint32_t)(es_low16(a) + es_low16(b));
  uint32_t high = (uint32_t)(es_high16(a) + es_high16(b));
  return (int32_t)((low & 0xFFFF) | high << 16);
}

#endif

/* Before a loop that is as fast as it gets, and large enough. */
#if defined(__clang__)
#define ES_NO_UNROLL _Pragma("clang loop unroll(disable)")
#elif defined(__GNUC__)
#define ES_NO_UNROLL _Pragma("GCC unroll 1")
#else
#define ES_NO_UNROLL
#endif

/* Four bytes at any address: one load. */
static inline int32_t es_load4(const int8_t *from) {
  int32_t word;
  es_copy(&word, from, 4);
  return word;
}

/* round(a * b / 2^32) + c, ties up: SMMLAR. Pre: the result fits int32. */
static inline int32_t es_high_product(int32_t a, int32_t b, int32_t c) {
  return (int32_t)(((int64_t)a * b + (INT64_C(1) << 31)) >> 32) + c;
}

/* es_requantize in fewer instructions.
 *
 * With a shift to the right by n >= 1 the two roundings become a rounded high product, a correction
 * by the sign and one shift. high is round(x * multiplier / 2^31) with ties up, which is what the
 * reference does as well, and its second rounding takes ties away from zero: for negative values
 * adding 2^(n-1) - 1 before the shift. The sign of x may stand in for that of the product, because
 * they differ only where the product is 0, and (2^(n-1) - 1) >> n is 0, too.
 * Pre: |x| <= 2^30 - 1 where shift < 0: |high| < 2^30, so no addition overflows. */
static inline int32_t es_requantize_dsp(int32_t x, int32_t multiplier, int32_t shift) {
  if (shift >= 0) return es_requantize(x, multiplier, shift);
  int32_t half = (int32_t)(UINT32_C(1) << (-shift - 1));
  return es_high_product(2 * x, multiplier, half + (x >> 31)) >> -shift;
}

#endif
