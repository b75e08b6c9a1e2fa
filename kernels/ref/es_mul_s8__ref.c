/* Product of two int8 tensors of one shape.
 *
 *   y[i] = clamp(requantize((a[i] - a_zero) * (b[i] - b_zero)) + y_zero)
 *
 *   a  [in]   int8 (n)
 *   b  [in]   int8 (n)
 *   y  [out]  int8 (n); may be a or b, or begin below one of them
 *
 * Pre:   the zero points are int8: the product is below 2^16.
 * Exact: TensorFlow Lite Micro's MUL. */
#include "es_elementwise.h"

void es_mul_s8__ref(const es_mul_shape *shape, const int8_t *a, const int8_t *b, int8_t *y) {
  for (int32_t i = 0; i < shape->n; i++) y[i] = (int8_t)es_mul_one(shape, a[i], b[i]);
}
