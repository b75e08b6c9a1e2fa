/* Maximum pool as es_maxpool_s8__ref, four channels at a time.
 *
 *   y[b][r][c][ch] = clamp(max of x over the window)
 *
 *   x  [in]   int8 (batch, in_height, in_width, channels)
 *   y  [out]  int8 (batch, out_height, out_width, channels); may overlap x as far as every value is
 *             written below what is still to be read: windows are read in order of y
 *
 * Pre:   x and y have one scale and zero point.
 * Exact: es_maxpool_s8__ref, bit for bit.
 *
 * Fast:  one load, SSUB8 and SEL for four values; channels left over go one by one. */
#include "es_bytes.h"
#include "es_dsp.h"
#include "es_reduce.h"

void es_maxpool_s8__dsp(const es_pool_shape *shape, const int8_t *x, int8_t *y) {
  int32_t channels = shape->channels, pitch = shape->in_width * channels;
  int32_t low = es_repeat4(shape->y_min), high = es_repeat4(shape->y_max);
  for (int32_t b = 0; b < shape->batch; b++, x += shape->in_height * pitch) {
    for (int32_t row = 0; row < shape->out_height; row++) {
      for (int32_t column = 0; column < shape->out_width; column++) {
        es_window w = es_pool_window(shape, row, column);
        const int8_t *corner = x + w.top * pitch + w.left * channels;
        int32_t rows = w.bottom - w.top, columns = w.right - w.left, left = channels;
        for (; left >= 4; left -= 4, corner += 4, y += 4) {
          int32_t largest = low;
          for (int32_t i = 0; i < rows; i++) {
            const int8_t *from = corner + i * pitch;
            ES_NO_UNROLL
            for (int32_t j = 0; j < columns; j++, from += channels) {
              largest = es_max4(largest, es_load4(from));
            }
          }
          largest = es_min4(largest, high);
          es_copy(y, &largest, 4);
        }
        for (; left > 0; left--, corner++) {
          int32_t largest = shape->y_min;
          for (int32_t i = 0; i < rows; i++) {
            for (int32_t j = 0; j < columns; j++) {
              largest = es_max(largest, corner[i * pitch + j * channels]);
            }
          }
          *y++ = (int8_t)es_min(largest, shape->y_max);
        }
      }
    }
  }
}
