/* Maximum pool, int16; padding does not count.
 *
 *   y[b][r][c][ch] = clamp(max of x over the window)
 *
 *   x  [in]   int16 (batch, in_height, in_width, channels)
 *   y  [out]  int16 (batch, out_height, out_width, channels); may overlap x as far as every value
 *             is written below what is still to be read: windows are read in order of y
 *
 * Pre:   x and y have one scale and zero point.
 * Exact: TensorFlow Lite Micro's MAX_POOL_2D. */
#include "es_reduce.h"

void es_maxpool_s16__ref(const es_pool_shape *shape, const int16_t *x, int16_t *y) {
  for (int32_t b = 0; b < shape->batch; b++) {
    for (int32_t row = 0; row < shape->out_height; row++) {
      for (int32_t column = 0; column < shape->out_width; column++) {
        es_window w = es_pool_window(shape, row, column);
        for (int32_t channel = 0; channel < shape->channels; channel++) {
          int32_t largest = INT16_MIN;
          for (int32_t i = w.top; i < w.bottom; i++) {
            for (int32_t j = w.left; j < w.right; j++) {
              largest = es_max(largest, x[(i * shape->in_width + j) * shape->channels + channel]);
            }
          }
          *y++ = (int16_t)es_clamp(largest, shape->y_min, shape->y_max);
        }
      }
    }
    x += shape->in_height * shape->in_width * shape->channels;
  }
}
