/* Fully connected, int8 activations and weights, int32 bias.
 *
 *   y[r][o] = clamp(requantize(bias[o] + sum_i (x[r][i] - x_zero) * (w[o][i] - w_zero)) + y_zero)
 *
 *   x           [in]   int8 (rows, n_in)
 *   w           [in]   int8 (n_out, n_in)
 *   bias        [in]   int32 (n_out)
 *   multiplier  [in]   int32 (n_out), of es_requantize
 *   shift       [in]   int8 (n_out), of es_requantize
 *   y           [out]  int8 (rows, n_out), must not alias x
 *
 * Pre:   n_in <= 32768 and |bias| <= 2^30: 2^15 * 255 * 255 < 2^31 - 2^30 does not hold for w_zero
 *        other than 0, which needs n_in <= 16384.
 * Exact: TensorFlow Lite Micro's FULLY_CONNECTED. */
#include "es_dense.h"

void es_dense_s8__ref(const es_dense_shape *shape, const int8_t *x, const int8_t *w,
                      const int32_t *bias, const int32_t *multiplier, const int8_t *shift,
                      int8_t *y) {
  for (int32_t r = 0; r < shape->rows; r++) {
    const int8_t *weights = w;
    for (int32_t o = 0; o < shape->n_out; o++) {
      int32_t sum = bias[o];
      for (int32_t i = 0; i < shape->n_in; i++) {
        sum += (x[i] - shape->x_zero) * (*weights++ - shape->w_zero);
      }
      sum = es_requantize(sum, multiplier[o], shift[o]) + shape->y_zero;
      *y++ = (int8_t)es_clamp(sum, shape->y_min, shape->y_max);
    }
    x += shape->n_in;
  }
}
