/* Bilinear resizing of an int8 map, in fixed point with 10 fractional bits.
 *
 *   Every output row r has a source row rows[2r] >> 10 and a fraction of the next one, and a lowest
 *   source row at or above it (rows[2r + 1]); columns likewise. The four neighbours are weighted in
 *   20 fractional bits and rounded half away from zero.
 *
 *   rows     [in]   int32 (y_height, 3): scaled position, lower row, upper row
 *   columns  [in]   int32 (y_width, 3): scaled position, lower column, upper column
 *   x        [in]   int8 (batches, x_height, x_width, channels)
 *   y        [out]  int8 (batches, y_height, y_width, channels), must not alias x
 *
 * Pre:   positions below 2^31; a product of weights is at most 2^20, times 128, four times: < 2^30.
 * Exact: TensorFlow Lite Micro's RESIZE_BILINEAR. */
#include "es_move.h"

void es_resize_s8_bilinear__ref(const es_resize_shape *shape, const int32_t *rows,
                                const int32_t *columns, const int8_t *x, int8_t *y) {
  const int32_t channels = shape->channels, pitch = shape->x_width * channels;
  for (int32_t n = 0; n < shape->batches; n++) {
    for (int32_t r = 0; r < shape->y_height; r++) {
      const int32_t low_row = rows[3 * r + 1], high_row = rows[3 * r + 2];
      const int32_t down = rows[3 * r] - (low_row << 10);
      for (int32_t c = 0; c < shape->y_width; c++) {
        const int32_t low = columns[3 * c + 1], high = columns[3 * c + 2];
        const int32_t right = columns[3 * c] - (low << 10);
        const int8_t *a = x + low_row * pitch + low * channels;
        const int8_t *b = x + high_row * pitch + low * channels;
        const int8_t *d = x + low_row * pitch + high * channels;
        const int8_t *e = x + high_row * pitch + high * channels;
        for (int32_t k = 0; k < channels; k++) {
          int64_t sum = (int64_t)a[k] * (1024 - down) * (1024 - right);
          sum += (int64_t)b[k] * down * (1024 - right);
          sum += (int64_t)d[k] * (1024 - down) * right;
          sum += (int64_t)e[k] * down * right;
          sum += sum > 0 ? 1 << 19 : -(1 << 19);
          *y++ = (int8_t)(sum / (1 << 20));
        }
      }
    }
    x += shape->x_height * pitch;
  }
}
