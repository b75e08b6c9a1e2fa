/* Division by the Euclidean length along the last axis, int8.
 *
 *   y[r][i] = clamp(round(128 * v[i] / sqrt(sum_j v[j]^2))), v[i] = x[r][i] - x_zero
 *
 *   x  [in]   int8 (rows, n)
 *   y  [out]  int8 (rows, n), scale 1/128 and zero point 0; may be x, or begin below it
 *
 * Pre:   n <= 33025: 33025 * 255^2 < 2^31. A row of zeros stays zeros.
 * Exact: TensorFlow Lite Micro's L2_NORMALIZATION. */
#include "es_fixed.h"
#include "es_softmax.h"

void es_l2norm_s8__ref(const es_l2norm_shape *shape, const int8_t *x, int8_t *y) {
  for (int32_t r = 0; r < shape->rows; r++) {
    int32_t sum = 0;
    es_scaled root;
    for (int32_t i = 0; i < shape->n; i++) {
      int32_t v = x[i] - shape->x_zero;
      sum += v * v;
    }
    root = es_reciprocal_root(sum);
    for (int32_t i = 0; i < shape->n; i++) {
      int32_t v = es_requantize(x[i] - shape->x_zero, root.multiplier, root.shift + 7);
      y[i] = (int8_t)es_clamp(v, INT8_MIN, INT8_MAX);
    }
    x += shape->n;
    y += shape->n;
  }
}
