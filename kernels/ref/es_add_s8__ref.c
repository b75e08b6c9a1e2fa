/* Sum or difference of two int8 tensors of one shape, on a common scale.
 *
 *   y[i] = clamp(requantize(A(a[i]) + b_sign * B(b[i])) + y_zero)
 *   A(v) = requantize((v - a_zero) * 2^20), B alike
 *
 *   a  [in]   int8 (n)
 *   b  [in]   int8 (n)
 *   y  [out]  int8 (n); may be a or b, or begin below one of them
 *
 * Pre:   all shifts <= 0, and the scales of a and b are at most half of the common scale:
 *        |A|, |B| < 2^27, so no sum overflows.
 * Exact: TensorFlow Lite Micro's ADD and SUB. */
#include "es_elementwise.h"

void es_add_s8__ref(const es_add_shape *shape, const int8_t *a, const int8_t *b, int8_t *y) {
  for (int32_t i = 0; i < shape->n; i++) y[i] = (int8_t)es_add_one(shape, 20, a[i], b[i]);
}
