/* Softmax along the last axis, int8 to int8.
 *
 *   y[r][i] = e^(beta * x_scale * (x[r][i] - max_j x[r][j])) / sum_j of the same, in fixed point
 *
 *   x  [in]   int8 (rows, n)
 *   y  [out]  int8 (rows, n), scale 2^-8 and zero point -2^7; may be x, or begin below it
 *
 * Pre:   n < 4096: the sum has 12 bits before its point. diff_min keeps Q5.26 from overflowing.
 * Exact: TensorFlow Lite Micro's SOFTMAX, which stops with an error from a sum of 512 on. */
#include "es_fixed.h"
#include "es_softmax.h"

void es_softmax_s8__ref(const es_softmax_shape *shape, const int8_t *x, int8_t *y) {
  for (int32_t r = 0; r < shape->rows; r++) {
    int32_t largest = INT8_MIN, sum = 0, zeros, scale, shift;
    for (int32_t i = 0; i < shape->n; i++) largest = es_max(largest, x[i]);
    for (int32_t i = 0; i < shape->n; i++) {
      int32_t diff = x[i] - largest;
      if (diff >= shape->diff_min) {
        int32_t power = es_exp_q5(es_requantize(diff, shape->multiplier, shape->shift));
        sum += es_rounding_shift_right(power, 12);
      }
    }
    zeros = es_leading_zeros((uint32_t)sum);
    scale = es_reciprocal_of_one_plus((int32_t)(((uint32_t)sum << zeros) & INT32_MAX));
    shift = 12 - zeros + 31 - 8; /* above 31 where the sum is 512 or more: all round to 0 */
    for (int32_t i = 0; i < shape->n; i++) {
      int32_t diff = x[i] - largest, value = INT8_MIN;
      if (diff >= shape->diff_min && shift <= 31) {
        int32_t power = es_exp_q5(es_requantize(diff, shape->multiplier, shape->shift));
        value += es_rounding_shift_right(es_doubling_high_mul(scale, power), shift);
      }
      y[i] = (int8_t)es_clamp(value, INT8_MIN, INT8_MAX);
    }
    x += shape->n;
    y += shape->n;
  }
}
