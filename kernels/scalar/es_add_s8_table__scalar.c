/* Sum or difference of two int8 tensors of one shape, for cores without a 64-bit product.
 *
 *   y[i] = clamp(requantize(factor * a[i] + table[b[i] & 255]) + y_zero)
 *
 *   a      [in]   int8 (n): the input with the larger scale, which lies on the common scale but for
 *                 a factor
 *   b      [in]   int8 (n): the other input
 *   table  [in]   int32 (256): what each value of b is on the common scale, both zero points folded
 *                 in; entries 0 to 127 for b >= 0, entries 128 to 255 for -128 to -1
 *   y      [out]  int8 (n); may be a or b, or begin below one of them
 *
 * Pre:   |factor| = 2^19 and |table| < 2^28, so |sum| < 2^29; y_right is 1 to 22.
 * Exact: es_add_s8__ref, bit for bit.
 *
 * Fast:  of three requantizations one stays; the table does another, the third is exact. */
#include "es_elementwise.h"
#include "es_scalar.h"

void es_add_s8_table__scalar(const es_add_table_shape *shape, const int8_t *a, const int8_t *b,
                             const int32_t *table, int8_t *y) {
  const int32_t constants[3] = {shape->y_multiplier, shape->y_constant, shape->y_right};
  int32_t factor = shape->factor, y_min = shape->y_min, y_max = shape->y_max;
  for (const int8_t *end = a + shape->n; a < end;) {
    int32_t sum = factor * *a++ + table[(uint8_t)*b++];
    *y++ = (int8_t)es_clamp(es_requantize_scalar(sum, constants), y_min, y_max);
  }
}
