/* Instructions of Armv7E-M and Armv8-M with DSP extension, two 16-bit lanes to a register.
 *
 * Elsewhere portable functions stand in, so that a host runs the same kernels. Sums wrap, as the
 * instructions do. */
#ifndef ES_DSP_H
#define ES_DSP_H

#include "es_base.h"

/* A function of its own, so that its loop has all registers. */
#if defined(__GNUC__)
#define ES_OUTLINE static __attribute__((noinline, unused))
#else
#define ES_OUTLINE static inline
#endif

#if defined(__ARM_FEATURE_SIMD32)
#include <arm_acle.h>

/* Both compilers know this as a rotation; gcc's arm_acle.h has no __ror. */
static inline uint32_t es_ror8(int32_t x) { return ((uint32_t)x >> 8) | ((uint32_t)x << 24); }

static inline int32_t es_smlad(int32_t a, int32_t b, int32_t sum) { return __smlad(a, b, sum); }
static inline int32_t es_sxtb16(int32_t x) { return (int32_t)__sxtb16((int8x4_t)x); }
static inline int32_t es_sxtb16_ror8(int32_t x) {
  return (int32_t)__sxtb16((int8x4_t)es_ror8(x));
}
static inline int32_t es_sxtab16(int32_t a, int32_t x) {
  return (int32_t)__sxtab16((int16x2_t)a, (int8x4_t)x);
}
static inline int32_t es_sxtab16_ror8(int32_t a, int32_t x) {
  return (int32_t)__sxtab16((int16x2_t)a, (int8x4_t)es_ror8(x));
}
static inline int32_t es_sadd16(int32_t a, int32_t b) {
  return (int32_t)__sadd16((int16x2_t)a, (int16x2_t)b);
}

/* Two channels by two pixels, 4 * words values each, at w, w + step, x and x + next; sums are those
 * of (channel, pixel) (0, 0), (0, 1), (1, 0), (1, 1). By hand, as compilers keep so many values
 * under way that they spill: 30 cycles for 16 MACs, and 13 registers. */
ES_OUTLINE void es_dot_2x2(const int8_t *w, int32_t step, const int8_t *x, int32_t next,
                           int32_t words, int32_t *sums) {
  int32_t a = sums[0], b = sums[1], c = sums[2], d = sums[3], p, q, u, v;
  __asm__ volatile(
      "1: ldr %[p], [%[w], %[step]]\n"
      "ldr %[q], [%[w]]\n"
      "ldr %[u], [%[x]]\n"
      "ldr %[v], [%[x], %[next]]\n"
      "sxtb16 %[p], %[p]\n"
      "sxtb16 %[q], %[q]\n"
      "sxtb16 %[u], %[u]\n"
      "sxtb16 %[v], %[v]\n"
      "smlad %[a], %[q], %[u], %[a]\n"
      "smlad %[b], %[q], %[v], %[b]\n"
      "smlad %[c], %[p], %[u], %[c]\n"
      "smlad %[d], %[p], %[v], %[d]\n"
      "ldr %[p], [%[w], %[step]]\n"
      "ldr %[q], [%[w]], #4\n"
      "ldr %[v], [%[x], %[next]]\n"
      "ldr %[u], [%[x]], #4\n"
      "sxtb16 %[p], %[p], ror #8\n"
      "sxtb16 %[q], %[q], ror #8\n"
      "sxtb16 %[u], %[u], ror #8\n"
      "sxtb16 %[v], %[v], ror #8\n"
      "smlad %[a], %[q], %[u], %[a]\n"
      "smlad %[b], %[q], %[v], %[b]\n"
      "smlad %[c], %[p], %[u], %[c]\n"
      "smlad %[d], %[p], %[v], %[d]\n"
      "subs %[words], %[words], #1\n"
      "bne 1b\n"
      : [a] "+r"(a), [b] "+r"(b), [c] "+r"(c), [d] "+r"(d), [w] "+r"(w), [x] "+r"(x),
        [words] "+r"(words), [p] "=&r"(p), [q] "=&r"(q), [u] "=&r"(u), [v] "=&r"(v)
      : [step] "r"(step), [next] "r"(next)
      : "cc", "memory");
  sums[0] = a, sums[1] = b, sums[2] = c, sums[3] = d;
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
static inline int32_t es_sxtab16(int32_t a, int32_t x) { return es_sadd16(a, es_sxtb16(x)); }
static inline int32_t es_sxtab16_ror8(int32_t a, int32_t x) {
  return es_sadd16(a, es_sxtb16_ror8(x));
}
ES_OUTLINE void es_dot_2x2(const int8_t *w, int32_t step, const int8_t *x, int32_t next,
                           int32_t words, int32_t *sums) {
  for (; words > 0; words--, w += 4, x += 4) {
    for (int32_t i = 0; i < 4; i++) {
      sums[0] += w[i] * x[i];
      sums[1] += w[i] * x[next + i];
      sums[2] += w[step + i] * x[i];
      sums[3] += w[step + i] * x[next + i];
    }
  }
}

#endif

/* Before a loop that unrolling would only make larger. */
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

/* Copy n bytes to a lower address; the two may overlap. */
static inline void es_move_down(int8_t *to, const int8_t *from, int32_t n) {
  for (; n >= 4; n -= 4, to += 4, from += 4) {
    int32_t word = es_load4(from);
    es_copy(to, &word, 4);
  }
  for (; n > 0; n--) *to++ = *from++;
}

/* round(a * b / 2^32) + c, ties up: SMMLAR. Pre: the result fits int32. */
static inline int32_t es_high_product(int32_t a, int32_t b, int32_t c) {
  return (int32_t)(((int64_t)a * b + (INT64_C(1) << 31)) >> 32) + c;
}

/* es_requantize in fewer instructions, for shifts to the right by n = -shift >= 1.
 *
 * The two roundings become a rounded high product, a correction by the sign and one shift. high is
 * round(x * multiplier / 2^31) with ties up, which is what the reference does as well, and its
 * second rounding takes ties away from zero: for negative values adding 2^(n-1) - 1 before the
 * shift. The sign of x may stand in for that of the product, because they differ only where the
 * product is 0, and (2^(n-1) - 1) >> n is 0, too.
 * Pre: -31 <= shift <= -1, |x| <= 2^30 - 1: |high| < 2^30, so no addition overflows. */
static inline int32_t es_requantize_dsp(int32_t x, int32_t multiplier, int32_t shift) {
  int32_t half = (int32_t)(UINT32_C(1) << (-shift - 1));
  return es_high_product(2 * x, multiplier, half + (x >> 31)) >> -shift;
}

/* Turn n sums, `step` apart, into outputs; levels: zero point, lowest, highest. */
ES_OUTLINE void es_finish(const int32_t *sums, int32_t step, int32_t n, const int32_t *multiplier,
                          const int8_t *shift, const int32_t *levels, int8_t *y) {
  int32_t zero = levels[0], low = levels[1], high = levels[2];
  ES_NO_UNROLL
  for (; n > 0; n--, sums += step) {
    int32_t value = es_requantize_dsp(*sums, *multiplier++, *shift++) + zero;
    *y++ = (int8_t)es_clamp(value, low, high);
  }
}

#endif
