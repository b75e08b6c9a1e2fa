/* int16 values with one slope from 0 on and another below: RELU, LEAKY_RELU.
 *
 *   y[i] = clamp(requantize(x[i], multiplier))                   where x[i] >= 0
 *          clamp(neg_sign * requantize(x[i], neg_multiplier))    else
 *
 *   x  [in]   int16 (n), zero point 0
 *   y  [out]  int16 (n), zero point 0; may be x, or begin below it
 *
 * Pre:   none.
 * Exact: TensorFlow Lite Micro's RELU and LEAKY_RELU. */
#include "es_lookup.h"

void es_leaky_s16__ref(const es_leaky_shape *shape, const int16_t *x, int16_t *y) {
  for (int32_t i = 0; i < shape->n; i++) {
    int32_t v = es_requantize(x[i], shape->multiplier, shape->shift);
    if (x[i] < 0) {
      v = shape->neg_sign * es_requantize(x[i], shape->neg_multiplier, shape->neg_shift);
    }
    y[i] = (int16_t)es_clamp(v, INT16_MIN, INT16_MAX);
  }
}
