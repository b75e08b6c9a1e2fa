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

/* round(a * b / 2^31), ties upwards; |a| < 2^29. */
#if defined(__thumb__) && !defined(__thumb2__)
#define ES_HIGH_MUL(a, b) es_doubling_high_mul_halves((a), (b))
#else
#define ES_HIGH_MUL(a, b) ((int32_t)(((int64_t)(a) * (b) + (1 << 30)) >> 31))
#endif

void es_add_s8_table__scalar(const es_add_table_shape *shape, const int8_t *a, const int8_t *b,
                             const int32_t *table, int8_t *y) {
  int32_t factor = shape->factor, y_min = shape->y_min, y_max = shape->y_max;
  int32_t multiplier = shape->y_multiplier, constant = shape->y_constant, right = shape->y_right;
  for (const int8_t *end = a + shape->n; a < end;) {
    int32_t sum = factor * *a++ + table[(uint8_t)*b++];
    /* Adding -1 to the constant of a half where the sum is negative sends ties away from 0. */
    int32_t value = (ES_HIGH_MUL(sum, multiplier) + constant + (sum >> 31)) >> right;
    *y++ = (int8_t)es_clamp(value, y_min, y_max);
  }
}
