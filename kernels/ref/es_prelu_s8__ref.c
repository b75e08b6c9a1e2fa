/* int8 values with slope 1 from 0 on and a slope of their own below, with broadcasting.
 *
 *   y[i] = clamp(requantize(x - x_zero, multiplier) + y_zero)                     where x >= x_zero
 *          clamp(requantize((x - x_zero) * (alpha - alpha_zero), neg_multiplier) + y_zero)   else
 *   x = x[ix] and alpha = alpha[ia], by the strides a and b of `broadcast`
 *
 *   x      [in]   int8, dense
 *   alpha  [in]   int8, dense
 *   y      [out]  int8 (d0, d1, d2, d3, d4); may be x if that repeats nowhere, or begin below it
 *
 * Pre:   |x - x_zero| < 2^8: products stay below 2^16.
 * Exact: TensorFlow Lite Micro's PRELU. */
#include "es_elementwise.h"

void es_prelu_s8__ref(const es_prelu_shape *shape, const es_broadcast_shape *broadcast,
                      const int8_t *x, const int8_t *alpha, int8_t *y) {
  for (int32_t row = 0; row < es_broadcast_rows(broadcast); row++) {
    es_broadcast_row at = es_broadcast_at(broadcast, row);
    for (int32_t i = 0; i < broadcast->d4; i++) {
      *y++ = (int8_t)es_prelu_one(shape, x[at.a], alpha[at.b]);
      at.a += broadcast->a4;
      at.b += broadcast->b4;
    }
  }
}
