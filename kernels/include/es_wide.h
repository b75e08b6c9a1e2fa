/* Requantization of 64-bit sums: int16 activations with int8 weights. */
#ifndef ES_WIDE_H
#define ES_WIDE_H

#include "es_base.h"

ES_BEGIN

/* x * multiplier * 2^(shift - 31) with the multiplier rounded to 15 bits and halves upwards, as the
 * reference does it; -2^47 <= x < 2^47, shift in [-31, 7]. What leaves int32 wraps. */
static inline int32_t es_requantize_wide(int64_t x, int32_t multiplier, int32_t shift) {
  int32_t reduced = multiplier < INT32_C(0x7fff0000) ? (multiplier + (1 << 15)) >> 16 : 0x7fff;
  int32_t right = 15 - shift;
  return (int32_t)((x * reduced + (INT64_C(1) << (right - 1))) >> right);
}

ES_END

#endif
