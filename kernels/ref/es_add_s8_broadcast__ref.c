/* Sum or difference of two int8 tensors of which one, or both, repeat along some dimensions.
 *
 *   y[i] = clamp(requantize(A(a[ia]) + b_sign * B(b[ib])) + y_zero)
 *   A(v) = requantize((v - a_zero) * 2^20), B alike; ia and ib by the strides of `broadcast`
 *
 *   a  [in]   int8, dense
 *   b  [in]   int8, dense
 *   y  [out]  int8 (d0, d1, d2, d3, d4); may be the input that repeats nowhere, or begin below it
 *
 * Pre:   as es_add_s8__ref; n is not used.
 * Exact: TensorFlow Lite Micro's ADD and SUB. */
#include "es_elementwise.h"

void es_add_s8_broadcast__ref(const es_add_shape *shape, const es_broadcast_shape *broadcast,
                              const int8_t *a, const int8_t *b, int8_t *y) {
  for (int32_t row = 0; row < es_broadcast_rows(broadcast); row++) {
    es_broadcast_row at = es_broadcast_at(broadcast, row);
    for (int32_t i = 0; i < broadcast->d4; i++) {
      *y++ = (int8_t)es_add_one(shape, 20, a[at.a], b[at.b]);
      at.a += broadcast->a4;
      at.b += broadcast->b4;
    }
  }
}
