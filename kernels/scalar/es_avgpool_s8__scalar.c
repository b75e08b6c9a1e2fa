/* Average pool as es_avgpool_s8__ref, four channels at a time, for cores without SIMD.
 *
 *   y[b][r][c][ch] = clamp(round(mean of x over the window)), halves away from zero
 *
 *   x  [in]   int8 (batch, in_height, in_width, channels), aligned to 4 bytes
 *   y  [out]  int8 (batch, out_height, out_width, channels); may overlap x as far as every value is
 *             written below what is still to be read: windows are read in order of y
 *
 * Pre:   channels is a multiple of 4. Every window meets the input, in 257 values at most:
 *        257 * 255 = 2^16 - 1, so sums fit their 16 bits. x and y have one scale and zero point.
 * Exact: es_avgpool_s8__ref, bit for bit.
 *
 * Fast:  values + 128 are added in the two halves of a word, which never carry: one load, a flip of
 *        the signs, two masks and two additions for four values. And there is one division for all
 *        channels: with m = 2^24 / count + 1 rounded down, n / count is n * m / 2^24 rounded down,
 *        because n * count < 2^24; n * m < 2^32, because n <= 128.5 * count. */
#include "es_bytes.h"
#include "es_reduce.h"

void es_avgpool_s8__scalar(const es_pool_shape *shape, const int8_t *x, int8_t *y) {
  int32_t channels = shape->channels, pitch = shape->in_width * channels;
  for (int32_t b = 0; b < shape->batch; b++, x += shape->in_height * pitch) {
    for (int32_t row = 0; row < shape->out_height; row++) {
      for (int32_t column = 0; column < shape->out_width; column++) {
        es_window w = es_pool_window(shape, row, column);
        const int8_t *corner = x + w.top * pitch + w.left * channels;
        int32_t rows = w.bottom - w.top, columns = w.right - w.left, count = rows * columns;
        uint32_t half = (uint32_t)count / 2, m = (UINT32_C(1) << 24) / (uint32_t)count + 1;
        for (int32_t left = channels; left > 0; left -= 4, corner += 4) {
          uint32_t sums[2] = {0, 0}; /* of channels 0 and 2, 1 and 3 */
          for (int32_t i = 0; i < rows; i++) {
            const int8_t *from = corner + i * pitch;
            for (int32_t j = 0; j < columns; j++, from += channels) {
              uint32_t four = (uint32_t)es_load4_aligned(from) ^ UINT32_C(0x80808080);
              sums[0] += four & UINT32_C(0x00FF00FF);
              sums[1] += (four >> 8) & UINT32_C(0x00FF00FF);
            }
          }
          for (int32_t k = 0; k < 4; k++) {
            int32_t sum = (int32_t)((sums[k & 1] >> (k & 2 ? 16 : 0)) & 0xFFFF) - 128 * count;
            uint32_t n = (uint32_t)(sum < 0 ? -sum : sum) + half;
            int32_t mean = (int32_t)((n * m) >> 24);
            *y++ = (int8_t)es_clamp(sum < 0 ? -mean : mean, shape->y_min, shape->y_max);
          }
        }
      }
    }
  }
}
