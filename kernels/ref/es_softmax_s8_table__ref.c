/* Softmax along the last axis, int8 to int8, with the powers of e in a table.
 *
 *   y[r][i] = e(x[r][i]) / sum_j e(x[r][j]), e(v) = table[max_j x[r][j] - v], in fixed point
 *
 *   x      [in]   int8 (rows, n)
 *   table  [in]   int32 (256): e^(-beta * x_scale * d) in Q0.31 for differences d from 0 on, 0
 *                 where -d < diff_min
 *   y      [out]  int8 (rows, n), scale 2^-8 and zero point -2^7; may be x, or begin below it
 *
 * Pre:   n < 4096: the sum has 12 bits before its point. Of the shape only rows and n are used.
 * Exact: es_softmax_s8__ref, bit for bit, with the table of its multiplier and shift. */
#include "es_fixed.h"
#include "es_softmax.h"

void es_softmax_s8_table__ref(const es_softmax_shape *shape, const int8_t *x, const int32_t *table,
                              int8_t *y) {
  for (int32_t r = 0; r < shape->rows; r++) {
    int32_t largest = INT8_MIN, sum = 0, zeros, scale, shift;
    for (int32_t i = 0; i < shape->n; i++) largest = es_max(largest, x[i]);
    for (int32_t i = 0; i < shape->n; i++) {
      sum += es_rounding_shift_right(table[largest - x[i]], 12);
    }
    zeros = es_leading_zeros((uint32_t)sum);
    scale = es_reciprocal_of_one_plus((int32_t)(((uint32_t)sum << zeros) & INT32_MAX));
    shift = 12 - zeros + 31 - 8; /* above 31 from a sum of 512 on: all round to 0 */
    for (int32_t i = 0; i < shape->n; i++) {
      int32_t power = table[largest - x[i]];
      int32_t value =
          shift <= 31 ? es_rounding_shift_right(es_doubling_high_mul(scale, power), shift) : 0;
      y[i] = (int8_t)es_min(INT8_MIN + value, INT8_MAX);
    }
    x += shape->n;
    y += shape->n;
  }
}
