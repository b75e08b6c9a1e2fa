/* Magnitudes of int16 values.
 *
 *   y[i] = min(requantize(|x[i]|), 2^15 - 1)
 *
 *   x  [in]   int16 (n), zero point 0
 *   y  [out]  int16 (n), zero point 0; may be x, or begin below it
 *
 * Pre:   the zero points in the shape are 0.
 * Exact: TensorFlow Lite Micro's ABS. */
#include "es_lookup.h"

void es_abs_s16__ref(const es_rescale_shape *shape, const int16_t *x, int16_t *y) {
  for (int32_t i = 0; i < shape->n; i++) {
    int32_t v = es_rescale_one(shape, x[i] < 0 ? -x[i] : x[i]);
    y[i] = (int16_t)es_clamp(v, INT16_MIN, INT16_MAX);
  }
}
