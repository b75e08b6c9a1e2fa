/* 1 / (1 + e^-x), int16, by a table with linear interpolation.
 *
 *   z    = |x[i] * multiplier| * 2^-shift; its lowest 9 bits lie between two table entries
 *   y[i] = round(table(z) / 2) for x >= 0, 2^15 - that for x < 0
 *
 *   x      [in]   int16 (n), zero point 0
 *   table  [in]   uint16 (256): 2^16 / (1 + e^(-j / 24)), bent for linear steps between
 *   y      [out]  int16 (n), scale 2^-15, zero point 0; may be x, or begin below it
 *
 * Pre:   0 <= multiplier < 2^15 and shift <= 31: |x * multiplier| + 2^30 < 2^31.
 * Exact: TensorFlow Lite Micro's LOGISTIC. */
#include "es_lookup.h"

void es_logistic_s16__ref(const es_sigmoid_shape *shape, const uint16_t *table, const int16_t *x,
                          int16_t *y) {
  int32_t half = shape->shift > 0 ? INT32_C(1) << (shape->shift - 1) : 0;
  for (int32_t i = 0; i < shape->n; i++) {
    int32_t z = (x[i] * shape->multiplier + half) >> shape->shift;
    uint32_t magnitude = (uint32_t)(z < 0 ? -z : z);
    uint32_t index = magnitude >> 9, rest = magnitude & 0x1ff;
    uint32_t value = UINT32_C(0x7fff) << 10;
    if (index < 255) {
      value = ((uint32_t)table[index] << 9) + rest * (uint32_t)(table[index + 1] - table[index]);
    }
    value = z >= 0 ? value + 512 : (UINT32_C(1) << 25) - value + 511;
    y[i] = (int16_t)(value >> 10);
  }
}
