/* Product of two int16 tensors of one shape.
 *
 *   y[i] = clamp(requantize((a[i] - a_zero) * (b[i] - b_zero)) + y_zero)
 *
 *   a  [in]   int16 (n)
 *   b  [in]   int16 (n)
 *   y  [out]  int16 (n); may be a or b, or begin below one of them
 *
 * Pre:   the zero points are 0: the product is at most 2^30.
 * Exact: TensorFlow Lite Micro's MUL. */
#include "es_elementwise.h"

void es_mul_s16__ref(const es_mul_shape *shape, const int16_t *a, const int16_t *b, int16_t *y) {
  for (int32_t i = 0; i < shape->n; i++) y[i] = (int16_t)es_mul_one(shape, a[i], b[i]);
}
