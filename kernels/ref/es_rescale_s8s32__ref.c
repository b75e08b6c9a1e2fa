/* Another scale and zero point: int8 to int32.
 *
 *   y[i] = requantize(x[i] - x_zero) + y_zero
 *
 *   x  [in]   int8 (n)
 *   y  [out]  int32 (n); may begin below x as far as every value is written below what
 *             is still to be read: values go in order
 *
 * Pre:   none: what leaves int32 wraps.
 * Exact: TensorFlow Lite Micro's QUANTIZE. */
#include "es_lookup.h"

void es_rescale_s8s32__ref(const es_rescale_shape *shape, const int8_t *x, int32_t *y) {
  for (int32_t i = 0; i < shape->n; i++) {
    y[i] = es_rescale_one(shape, x[i]);
  }
}
