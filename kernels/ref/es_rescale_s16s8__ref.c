/* Another scale and zero point: int16 to int8.
 *
 *   y[i] = clamp(requantize(x[i] - x_zero) + y_zero)
 *
 *   x  [in]   int16 (n)
 *   y  [out]  int8 (n); may be x, or begin below it
 *
 * Pre:   none: what leaves int32 wraps.
 * Exact: TensorFlow Lite Micro's QUANTIZE. */
#include "es_lookup.h"

void es_rescale_s16s8__ref(const es_rescale_shape *shape, const int16_t *x, int8_t *y) {
  for (int32_t i = 0; i < shape->n; i++) {
    y[i] = (int8_t)es_clamp(es_rescale_one(shape, x[i]), INT8_MIN, INT8_MAX);
  }
}
