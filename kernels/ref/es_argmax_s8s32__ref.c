/* Where the largest int8 value along an axis stands; the first of several.
 *
 *   y[o][i] = min of all j with x[o][j][i] = max over j of x[o][j][i]
 *
 *   x  [in]   int8 (outer, n, inner)
 *   y  [out]  int32 (outer, inner); may overlap x as far as every value is written below what is
 *             still to be read: values are read in order of y
 *
 * Exact: TensorFlow Lite Micro's ARG_MAX. */
#include "es_reduce.h"

void es_argmax_s8s32__ref(const es_arg_shape *shape, const int8_t *x, int32_t *y) {
  for (int32_t o = 0; o < shape->outer; o++) {
    for (int32_t i = 0; i < shape->inner; i++) {
      int32_t best = 0;
      for (int32_t j = 1; j < shape->n; j++) {
        if (x[j * shape->inner + i] > x[best * shape->inner + i]) best = j;
      }
      *y++ = best;
    }
    x += shape->n * shape->inner;
  }
}
