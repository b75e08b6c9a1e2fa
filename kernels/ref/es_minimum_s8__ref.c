/* The smaller of two int8 values of one scale and zero point, with broadcasting.
 *
 *   y[i] = min(a[ia], b[ib]), ia and ib by the strides of `broadcast`
 *
 *   a  [in]   int8, dense
 *   b  [in]   int8, dense
 *   y  [out]  int8 (d0, d1, d2, d3, d4); may be an input that repeats nowhere, or begin below it
 *
 * Exact: TensorFlow Lite Micro's MINIMUM. */
#include "es_elementwise.h"

void es_minimum_s8__ref(const es_broadcast_shape *broadcast, const int8_t *a, const int8_t *b,
                        int8_t *y) {
  for (int32_t row = 0; row < es_broadcast_rows(broadcast); row++) {
    es_broadcast_row at = es_broadcast_at(broadcast, row);
    for (int32_t i = 0; i < broadcast->d4; i++) {
      *y++ = (int8_t)es_min(a[at.a], b[at.b]);
      at.a += broadcast->a4;
      at.b += broadcast->b4;
    }
  }
}
