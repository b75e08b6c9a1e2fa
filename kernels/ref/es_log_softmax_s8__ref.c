/* Logarithm of the softmax along the last axis, int8.
 *
 *   y[r][i] = 127 + 16 * (v[i] - ln(sum_j e^v[j])), v[i] = x_scale * (x[r][i] - max_j x[r][j])
 *
 *   x  [in]   int8 (rows, n)
 *   y  [out]  int8 (rows, n), scale 1/16 and zero point 127; may be x, or begin below it
 *
 * Pre:   n < 4096: the sum has 12 bits before its point. diff_min keeps Q5.26 from overflowing.
 * Exact: TensorFlow Lite Micro's LOG_SOFTMAX. */
#include "es_fixed.h"
#include "es_softmax.h"

void es_log_softmax_s8__ref(const es_log_softmax_shape *shape, const int8_t *x, int8_t *y) {
  for (int32_t r = 0; r < shape->rows; r++) {
    int32_t largest = INT8_MIN, sum = 0, log_sum, lowest;
    for (int32_t i = 0; i < shape->n; i++) largest = es_max(largest, x[i]);
    for (int32_t i = 0; i < shape->n; i++) {
      int32_t diff = x[i] - largest;
      if (diff >= shape->diff_min) {
        int32_t power = es_exp_q5(es_requantize(diff, shape->multiplier, shape->shift));
        sum += es_rounding_shift_right(power, 12);
      }
    }
    log_sum = es_log_q12(sum);
    lowest = es_requantize(log_sum + INT32_MIN, shape->back_multiplier, shape->back_shift);
    lowest = es_max(shape->diff_min - 1, lowest);
    for (int32_t i = 0; i < shape->n; i++) {
      int32_t diff = x[i] - largest, value = INT8_MIN;
      if (diff > lowest) {
        int32_t log = es_requantize(diff, shape->multiplier, shape->shift) - log_sum;
        value = es_rounding_shift_right(log, 22) + 127;
      }
      y[i] = (int8_t)es_clamp(value, INT8_MIN, INT8_MAX);
    }
    x += shape->n;
    y += shape->n;
  }
}
