/* Product of two int8 matrices, both computed; batches broadcast, either may be transposed.
 *
 *   y[b][r][c] = clamp(requantize(sum_d (a[b][r][d] - a_zero) * (w[b][d][c] - w_zero)) + y_zero)
 *
 *   a  [in]   int8, where the strides of the shape say
 *   w  [in]   int8, where the strides of the shape say
 *   y  [out]  int8 (b0, b1, b2, rows, columns), must not alias a or w
 *
 * Pre:   depth <= 33025: depth * 255 * 255 < 2^31, so no sum overflows.
 * Exact: TensorFlow Lite Micro's BATCH_MATMUL. */
#include "es_matmul.h"

void es_matmul_s8__ref(const es_matmul_shape *shape, const int8_t *a, const int8_t *w, int8_t *y) {
  const es_matmul_shape s = *shape;
  for (int32_t b = 0; b < s.b0 * s.b1 * s.b2; b++) {
    int32_t i0 = b / (s.b1 * s.b2), i1 = b / s.b2 % s.b1, i2 = b % s.b2;
    const int8_t *left = a + i0 * s.a0 + i1 * s.a1 + i2 * s.a2;
    const int8_t *right = w + i0 * s.w0 + i1 * s.w1 + i2 * s.w2;
    for (int32_t r = 0; r < s.rows; r++) {
      for (int32_t c = 0; c < s.columns; c++) {
        int32_t sum = 0;
        for (int32_t d = 0; d < s.depth; d++) {
          sum += (left[r * s.a_row + d * s.a_depth] - s.a_zero) *
                 (right[c * s.w_column + d * s.w_depth] - s.w_zero);
        }
        sum = es_requantize(sum, s.multiplier, s.shift);
        *y++ = (int8_t)es_clamp(es_wrap_add(sum, s.y_zero), INT8_MIN, INT8_MAX);
      }
    }
  }
}
