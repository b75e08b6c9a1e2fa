/* Nearest-neighbour resizing of a map, of any type of value.
 *
 *   y[n][r][c] = x[n][rows[r]][columns[c]]     each of channels * value_bytes bytes
 *
 *   rows     [in]   int32 (y_height), source row of each row; computed ahead of time
 *   columns  [in]   int32 (y_width), source column of each column
 *   x        [in]   bytes (batches, x_height, x_width, channels * value_bytes)
 *   y        [out]  bytes (batches, y_height, y_width, channels * value_bytes), must not alias x
 *
 * Exact: TensorFlow Lite Micro's RESIZE_NEAREST_NEIGHBOR; its floats made the tables. */
#include "es_move.h"

void es_resize_b8_nearest__ref(const es_resize_shape *shape, const int32_t *rows,
                               const int32_t *columns, const void *x, void *y) {
  const int32_t pixel = shape->channels * shape->value_bytes;
  const uint8_t *source = (const uint8_t *)x;
  uint8_t *sink = (uint8_t *)y;
  for (int32_t n = 0; n < shape->batches; n++) {
    for (int32_t r = 0; r < shape->y_height; r++) {
      const uint8_t *row = source + rows[r] * shape->x_width * pixel;
      for (int32_t c = 0; c < shape->y_width; c++) {
        es_copy(sink, row + columns[c] * pixel, pixel);
        sink += pixel;
      }
    }
    source += shape->x_height * shape->x_width * pixel;
  }
}
