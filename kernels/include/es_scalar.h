/* Arithmetic for cores without SIMD: two products to a multiplication, requantization without a
 * 64-bit product where the core has none. */
#ifndef ES_SCALAR_H
#define ES_SCALAR_H

#include "es_base.h"

/* round(a * b / 2^31), ties upwards, by products of 16-bit halves; |a| < 2^29, 0 <= b < 2^31.
 *
 * a = ah * 2^16 + al with al in [-2^15, 2^15), b = bh * 2^16 + bl with bl in [0, 2^16):
 * |al * bl| <= 2^31 - 2^15, |al * bh| <= 2^30, |ah * bl| < 2^29 + 2^16, so no sum overflows. What
 * al * bl / 2^16 loses by rounding down lies below the lowest bit that the rest has. */
static inline int32_t es_doubling_high_mul_halves(int32_t a, int32_t b) {
  int32_t al = (int16_t)a, ah = (a - al) >> 16, bl = b & 0xFFFF, bh = b >> 16;
  int32_t middle = ((al * bl) >> 16) + al * bh + ah * bl, top = ah * bh;
  return top + top + ((middle + (1 << 14)) >> 15);
}

/* What es_requantize gives, plus the output's zero point. `constants` are the multiplier, in
 * [2^30, 2^31) or 0; 2^(n - 1) + y_zero * 2^n; n, a shift to the right by 1 to 22. |sum| < 2^29.
 *
 * Adding sum >> 31 to the rounding constant sends ties away from zero. Where sum is negative and
 * the product rounds to 0, it stays 0. */
static inline int32_t es_requantize_scalar(int32_t sum, const int32_t *constants) {
#if defined(__thumb__) && !defined(__thumb2__)
  int32_t high = es_doubling_high_mul_halves(sum, constants[0]);
#else
  int32_t high = (int32_t)(((int64_t)sum * constants[0] + (1 << 30)) >> 31);
#endif
  return (high + constants[1] + (sum >> 31)) >> constants[2];
}

#endif
