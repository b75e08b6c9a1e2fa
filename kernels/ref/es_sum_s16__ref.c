/* Sum or mean of int16 values over any dimensions.
 *
 *   y[k0][k1][k2] = clamp(requantize(sum of x over r0, r1, r2 + bias) + y_zero)
 *
 *   x  [in]   int16, dense; the strides say where each dimension lies
 *   y  [out]  int16 (k0, k1, k2); may overlap x as far as every value is written below what is
 *             still to be read: sums are taken in order of y
 *
 * Pre:   none: sums wrap modulo 2^32 as the reference's do, which needs more than 2^16 summands.
 * Exact: TensorFlow Lite Micro's SUM and MEAN. */
#include "es_reduce.h"

void es_sum_s16__ref(const es_sum_shape *shape, const int16_t *x, int16_t *y) {
  for (int32_t i0 = 0; i0 < shape->k0; i0++) {
    for (int32_t i1 = 0; i1 < shape->k1; i1++) {
      for (int32_t i2 = 0; i2 < shape->k2; i2++) {
        const int16_t *from = x + i0 * shape->ks0 + i1 * shape->ks1 + i2 * shape->ks2;
        int32_t sum = shape->bias;
        for (int32_t j0 = 0; j0 < shape->r0; j0++) {
          for (int32_t j1 = 0; j1 < shape->r1; j1++) {
            for (int32_t j2 = 0; j2 < shape->r2; j2++) {
              sum = es_wrap_add(sum, from[j0 * shape->rs0 + j1 * shape->rs1 + j2 * shape->rs2]);
            }
          }
        }
        sum = es_requantize(sum, shape->multiplier, shape->shift);
        *y++ = (int16_t)es_clamp(es_wrap_add(sum, shape->y_zero), INT16_MIN, INT16_MAX);
      }
    }
  }
}
