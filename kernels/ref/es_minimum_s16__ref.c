/* The smaller of two int16 values of one scale and zero point, with broadcasting.
 *
 *   y[i] = min(a[ia], b[ib]), ia and ib by the strides of `broadcast`
 *
 *   a  [in]   int16, dense
 *   b  [in]   int16, dense
 *   y  [out]  int16 (d0, d1, d2, d3, d4); may be an input that repeats nowhere, or begin below it
 *
 * Exact: TensorFlow Lite Micro's MINIMUM. */
#include "es_elementwise.h"

void es_minimum_s16__ref(const es_broadcast_shape *broadcast, const int16_t *a, const int16_t *b,
                         int16_t *y) {
  for (int32_t row = 0; row < es_broadcast_rows(broadcast); row++) {
    es_broadcast_row at = es_broadcast_at(broadcast, row);
    for (int32_t i = 0; i < broadcast->d4; i++) {
      *y++ = (int16_t)es_min(a[at.a], b[at.b]);
      at.a += broadcast->a4;
      at.b += broadcast->b4;
    }
  }
}
