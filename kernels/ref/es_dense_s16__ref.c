/* Fully connected, int16 activations, int8 weights, int64 bias.
 *
 *   y[r][o] = clamp(requantize_wide(bias[o] + sum_i x[r][i] * w[o][i]))
 *
 *   x           [in]   int16 (rows, n_in), zero point 0
 *   w           [in]   int8 (n_out, n_in), symmetric: w_zero is 0
 *   bias        [in]   int64 (n_out)
 *   multiplier  [in]   int32 (n_out), of es_requantize_wide
 *   shift       [in]   int8 (n_out), of es_requantize_wide: at most 7
 *   y           [out]  int16 (rows, n_out), zero point 0, must not alias x
 *
 * Pre:   |bias[o]| + 2^15 * sum |w[o]| < 2^47 (the lowering checks it).
 * Exact: TensorFlow Lite Micro's FULLY_CONNECTED with a bias of int64. */
#include "es_int16.h"

void es_dense_s16__ref(const es_dense_shape *shape, const int16_t *x, const int8_t *w,
                       const int64_t *bias, const int32_t *multiplier, const int8_t *shift,
                       int16_t *y) {
  for (int32_t r = 0; r < shape->rows; r++) {
    const int8_t *weights = w;
    for (int32_t o = 0; o < shape->n_out; o++) {
      int64_t sum = bias[o];
      for (int32_t i = 0; i < shape->n_in; i++) sum += x[i] * *weights++;
      int32_t value = es_requantize_wide(sum, multiplier[o], shift[o]);
      *y++ = (int16_t)es_clamp(value, shape->y_min, shape->y_max);
    }
    x += shape->n_in;
  }
}
