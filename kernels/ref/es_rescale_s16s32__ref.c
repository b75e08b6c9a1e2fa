/* Another scale and zero point: int16 to int32.
 *
 *   y[i] = requantize(x[i] - x_zero) + y_zero
 *
 *   x  [in]   int16 (n)
 *   y  [out]  int32 (n); must not alias x
 *
 * Pre:   none: what leaves int32 wraps.
 * Exact: TensorFlow Lite Micro's QUANTIZE. */
#include "es_lookup.h"

void es_rescale_s16s32__ref(const es_rescale_shape *shape, const int16_t *x, int32_t *y) {
  for (int32_t i = 0; i < shape->n; i++) {
    y[i] = es_rescale_one(shape, x[i]);
  }
}
