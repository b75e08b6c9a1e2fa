/* Softmax along the last axis, int8 to int16.
 *
 *   y[r][i] = e^(beta * x_scale * (x[r][i] - max_j x[r][j])) / sum_j of the same, in fixed point
 *
 *   x  [in]   int8 (rows, n)
 *   y  [out]  int16 (rows, n), scale 2^-16 and zero point -2^15; may begin below x as
 *             far as every value is written below what is still to be read
 *
 * Pre:   n < 4096: the sum has 12 bits before its point. diff_min keeps Q5.26 from overflowing.
 * Exact: TensorFlow Lite Micro's SOFTMAX. */
#include "es_fixed.h"
#include "es_softmax.h"

void es_softmax_s8s16__ref(const es_softmax_shape *shape, const int8_t *x, int16_t *y) {
  for (int32_t r = 0; r < shape->rows; r++) {
    int32_t largest = INT8_MIN, sum = 0, scale = 0, shift = 0;
    for (int32_t i = 0; i < shape->n; i++) largest = es_max(largest, x[i]);
    for (int32_t pass = 0; pass < 2; pass++) { /* once for the sum, once for the outputs */
      for (int32_t i = 0; i < shape->n; i++) {
        int32_t diff = x[i] - largest, power = 0;
        if (diff >= shape->diff_min) {
          power = es_exp_q5(es_requantize(diff, shape->multiplier, shape->shift));
        }
        if (pass == 0) {
          sum += es_rounding_shift_right(power, 12);
        } else {
          int32_t value = es_rounding_shift_right(es_doubling_high_mul(scale, power), shift);
          y[i] = (int16_t)es_min(INT16_MIN + value, INT16_MAX);
        }
      }
      if (pass == 0) {
        int32_t zeros = es_leading_zeros((uint32_t)sum);
        scale = es_reciprocal_of_one_plus((int32_t)(((uint32_t)sum << zeros) & INT32_MAX));
        shift = 12 - zeros + 31 - 16;
      }
    }
    x += shape->n;
    y += shape->n;
  }
}
