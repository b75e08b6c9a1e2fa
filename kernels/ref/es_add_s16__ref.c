/* Sum or difference of two int16 tensors of one shape, on a common scale.
 *
 *   y[i] = clamp(requantize(A(a[i]) + b_sign * B(b[i])) + y_zero)
 *   A(v) = requantize((v - a_zero) * 2^15), B alike
 *
 *   a  [in]   int16 (n)
 *   b  [in]   int16 (n)
 *   y  [out]  int16 (n); may be a or b, or begin below one of them
 *
 * Pre:   all shifts <= 0, and the scales of a and b are at most half of the common scale:
 *        |A|, |B| < 2^30, so no sum overflows.
 * Exact: TensorFlow Lite Micro's ADD and SUB. */
#include "es_elementwise.h"

void es_add_s16__ref(const es_add_shape *shape, const int16_t *a, const int16_t *b, int16_t *y) {
  for (int32_t i = 0; i < shape->n; i++) y[i] = (int16_t)es_add_one(shape, 15, a[i], b[i]);
}
