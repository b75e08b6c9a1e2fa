/* Product of two int16 matrices, both computed; batches broadcast, either may be transposed.
 *
 *   y[b][r][c] = clamp(requantize_wide(sum_d a[b][r][d] * w[b][d][c]))
 *
 *   a  [in]   int16, where the strides of the shape say; zero point 0
 *   w  [in]   int16, where the strides of the shape say; zero point 0
 *   y  [out]  int16 (b0, b1, b2, rows, columns), zero point 0, must not alias a or w
 *
 * Pre:   depth <= 2^17 and shift <= 7: 2^17 * 2^30 <= 2^47, as es_requantize_wide wants.
 * Exact: TensorFlow Lite Micro's BATCH_MATMUL. */
#include "es_matmul.h"
#include "es_wide.h"

void es_matmul_s16__ref(const es_matmul_shape *shape, const int16_t *a, const int16_t *w,
                        int16_t *y) {
  const es_matmul_shape s = *shape;
  for (int32_t b = 0; b < s.b0 * s.b1 * s.b2; b++) {
    int32_t i0 = b / (s.b1 * s.b2), i1 = b / s.b2 % s.b1, i2 = b % s.b2;
    const int16_t *left = a + i0 * s.a0 + i1 * s.a1 + i2 * s.a2;
    const int16_t *right = w + i0 * s.w0 + i1 * s.w1 + i2 * s.w2;
    for (int32_t r = 0; r < s.rows; r++) {
      for (int32_t c = 0; c < s.columns; c++) {
        int64_t sum = 0;
        for (int32_t d = 0; d < s.depth; d++) {
          sum += left[r * s.a_row + d * s.a_depth] * right[c * s.w_column + d * s.w_depth];
        }
        *y++ = (int16_t)es_clamp(es_requantize_wide(sum, s.multiplier, s.shift), INT16_MIN,
                                 INT16_MAX);
      }
    }
  }
}
