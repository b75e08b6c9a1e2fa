/* Softmax along the last axis, int16, by two tables with linear interpolation.
 *
 *   y[r][i] = e^(beta * x_scale * (x[r][i] - max_j x[r][j])) / sum_j of the same
 *
 *   x                [in]   int16 (rows, n), zero point 0
 *   exp_table        [in]   int16 (513): e^v for v from -10 to 0, Q0.15
 *   reciprocal_table [in]   int16 (513): 1 / (1 + v) for v from 0 to 1, Q0.15
 *   y                [out]  int16 (rows, n), scale 2^-15, zero point 0; may be x, or begin below it
 *
 * Pre:   n <= 65536, so the sum stays below 2^31; multiplier and shift are those of
 *        beta * x_scale * 65535 / 10. diff_min is not used.
 * Exact: TensorFlow Lite Micro's SOFTMAX. */
#include "es_fixed.h"
#include "es_softmax.h"

void es_softmax_s16__ref(const es_softmax_shape *shape, const int16_t *x, const int16_t *exp_table,
                         const int16_t *reciprocal_table, int16_t *y) {
  for (int32_t r = 0; r < shape->rows; r++) {
    int32_t largest = INT16_MIN, sum = 0, shift, reciprocal;
    for (int32_t i = 0; i < shape->n; i++) largest = es_max(largest, x[i]);
    for (int32_t i = 0; i < shape->n; i++) {
      int32_t v = es_requantize(x[i] - largest, shape->multiplier, shape->shift);
      v = es_clamp(es_wrap_add(v, INT16_MAX), INT16_MIN, INT16_MAX);
      y[i] = (int16_t)es_interpolate(exp_table, v);
      sum += y[i];
    }
    shift = 31 - es_leading_zeros((uint32_t)sum); /* the place of its highest bit */
    reciprocal = (int32_t)((((int64_t)sum << (30 - shift)) + (1 << 13)) >> 14); /* 1 to 2, Q16 */
    reciprocal = es_clamp(reciprocal - (1 << 16) - (1 << 15), INT16_MIN, INT16_MAX);
    reciprocal = es_interpolate(reciprocal_table, reciprocal);
    for (int32_t i = 0; i < shape->n; i++) {
      int32_t value = (y[i] * reciprocal + (1 << (shift - 1))) >> shift;
      y[i] = (int16_t)es_clamp(value, 0, INT16_MAX);
    }
    x += shape->n;
    y += shape->n;
  }
}
