/* Average pool as es_avgpool_s8__ref, four channels at a time.
 *
 *   y[b][r][c][ch] = clamp(round(mean of x over the window)), halves away from zero
 *
 *   x  [in]   int8 (batch, in_height, in_width, channels)
 *   y  [out]  int8 (batch, out_height, out_width, channels); may overlap x as far as every value is
 *             written below what is still to be read: windows are read in order of y
 *
 * Pre:   every window meets the input, in 256 values at most: 256 * 128 = 2^15, so sums fit their
 *        16 bits. x and y have one scale and zero point.
 * Exact: es_avgpool_s8__ref, bit for bit.
 *
 * Fast:  one load, two widenings and two additions of two lanes for four values; channels left over
 *        go one by one. */
#include "es_dsp.h"
#include "es_reduce.h"

static inline int8_t es_mean(int32_t sum, int32_t count, const es_pool_shape *shape) {
  int32_t half = count / 2;
  return (int8_t)es_clamp((sum > 0 ? sum + half : sum - half) / count, shape->y_min, shape->y_max);
}

void es_avgpool_s8__dsp(const es_pool_shape *shape, const int8_t *x, int8_t *y) {
  int32_t channels = shape->channels, pitch = shape->in_width * channels;
  for (int32_t b = 0; b < shape->batch; b++, x += shape->in_height * pitch) {
    for (int32_t row = 0; row < shape->out_height; row++) {
      for (int32_t column = 0; column < shape->out_width; column++) {
        es_window w = es_pool_window(shape, row, column);
        const int8_t *corner = x + w.top * pitch + w.left * channels;
        int32_t rows = w.bottom - w.top, columns = w.right - w.left, left = channels;
        int32_t count = rows * columns;
        for (; left >= 4; left -= 4, corner += 4, y += 4) {
          int32_t even = 0, odd = 0; /* channels 0 and 2, 1 and 3 */
          for (int32_t i = 0; i < rows; i++) {
            const int8_t *from = corner + i * pitch;
            ES_NO_UNROLL
            for (int32_t j = 0; j < columns; j++, from += channels) {
              int32_t four = es_load4(from);
              even = es_sadd16(even, es_sxtb16(four));
              odd = es_sadd16(odd, es_sxtb16_ror8(four));
            }
          }
          y[0] = es_mean((int16_t)even, count, shape);
          y[1] = es_mean((int16_t)odd, count, shape);
          y[2] = es_mean(even >> 16, count, shape);
          y[3] = es_mean(odd >> 16, count, shape);
        }
        for (; left > 0; left--, corner++) {
          int32_t sum = 0;
          for (int32_t i = 0; i < rows; i++) {
            for (int32_t j = 0; j < columns; j++) sum += corner[i * pitch + j * channels];
          }
          *y++ = es_mean(sum, count, shape);
        }
      }
    }
  }
}
