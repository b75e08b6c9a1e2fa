/* tanh(x) = 2 / (1 + e^-2x) - 1, int16, by the table of the logistic function.
 *
 *   z    = |x[i] * multiplier| * 2^-shift; its lowest 8 bits lie between two table entries
 *   y[i] = round(table(z) - 2^15) for x >= 0, the negative of that for x < 0
 *
 *   x      [in]   int16 (n), zero point 0
 *   table  [in]   uint16 (256): 2^16 / (1 + e^(-j / 24)), bent for linear steps between
 *   y      [out]  int16 (n), scale 2^-15, zero point 0; may be x, or begin below it
 *
 * Pre:   0 <= multiplier < 2^15 and shift <= 31: |x * multiplier| + 2^30 < 2^31.
 * Exact: TensorFlow Lite Micro's TANH. */
#include "es_lookup.h"

void es_tanh_s16__ref(const es_sigmoid_shape *shape, const uint16_t *table, const int16_t *x,
                      int16_t *y) {
  int32_t half = shape->shift > 0 ? INT32_C(1) << (shape->shift - 1) : 0;
  for (int32_t i = 0; i < shape->n; i++) {
    int32_t z = (x[i] * shape->multiplier + half) >> shape->shift;
    int32_t magnitude = z < 0 ? -z : z;
    int32_t index = magnitude >> 8, rest = magnitude & 0xff;
    int32_t value = INT32_C(0xffff) << 8;
    if (index < 255) {
      value = ((int32_t)table[index] << 8) + rest * (table[index + 1] - table[index]);
    }
    value -= INT32_C(1) << 23;
    y[i] = (int16_t)((z >= 0 ? value + 128 : 127 - value) >> 8);
  }
}
