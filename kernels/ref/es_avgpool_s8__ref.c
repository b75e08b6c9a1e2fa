/* Average pool, int8; padding does not count.
 *
 *   y[b][r][c][ch] = clamp(round(mean of x over the window)), halves away from zero
 *
 *   x  [in]   int8 (batch, in_height, in_width, channels)
 *   y  [out]  int8 (batch, out_height, out_width, channels); may overlap x as far as every value
 *             is written below what is still to be read: windows are read in order of y
 *
 * Pre:   every window meets the input; window_height * window_width <= 2^23, so the sum
 *        cannot overflow. x and y have one scale and zero point.
 * Exact: TensorFlow Lite Micro's AVERAGE_POOL_2D. */
#include "es_reduce.h"

void es_avgpool_s8__ref(const es_pool_shape *shape, const int8_t *x, int8_t *y) {
  for (int32_t b = 0; b < shape->batch; b++) {
    for (int32_t row = 0; row < shape->out_height; row++) {
      for (int32_t column = 0; column < shape->out_width; column++) {
        es_window w = es_pool_window(shape, row, column);
        int32_t count = (w.bottom - w.top) * (w.right - w.left);
        for (int32_t channel = 0; channel < shape->channels; channel++) {
          int32_t sum = 0;
          for (int32_t i = w.top; i < w.bottom; i++) {
            for (int32_t j = w.left; j < w.right; j++) {
              sum += x[(i * shape->in_width + j) * shape->channels + channel];
            }
          }
          sum = (sum > 0 ? sum + count / 2 : sum - count / 2) / count;
          *y++ = (int8_t)es_clamp(sum, shape->y_min, shape->y_max);
        }
      }
    }
    x += shape->in_height * shape->in_width * shape->channels;
  }
}
