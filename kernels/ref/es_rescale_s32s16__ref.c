/* Another scale and zero point: int32 to int16.
 *
 *   y[i] = clamp(requantize(x[i] - x_zero) + y_zero)
 *
 *   x  [in]   int32 (n)
 *   y  [out]  int16 (n); must not alias x
 *
 * Pre:   none: what leaves int32 wraps.
 * Exact: TensorFlow Lite Micro's QUANTIZE. */
#include "es_lookup.h"

void es_rescale_s32s16__ref(const es_rescale_shape *shape, const int32_t *x, int16_t *y) {
  for (int32_t i = 0; i < shape->n; i++) {
    y[i] = (int16_t)es_clamp(es_rescale_one(shape, x[i]), INT16_MIN, INT16_MAX);
  }
}
