/* Copy of a block of up to six dimensions between two layouts.
 *
 *   y[y_start + sum_d i_d * y_d + b] = x[x_start + sum_d i_d * x_d + b]
 *   for all 0 <= i_d < n_d, d = 0..4, and 0 <= b < n5
 *
 *   x  [in]   bytes; strides may be zero (repeat) or negative (flip)
 *   y  [out]  bytes; what the strides leave out is kept; must not alias x
 *
 * Pads, slices, splits, concatenations and transposes are this with other numbers.
 *
 * Pre:   every byte named lies inside its tensor. */
#include "es_move.h"

void es_copy_b8_block__ref(const es_block_shape *shape, const void *x, void *y) {
  const es_block_shape *s = shape;
  const uint8_t *source = (const uint8_t *)x + s->x_start;
  uint8_t *sink = (uint8_t *)y + s->y_start;
  for (int32_t a = 0; a < s->n0; a++) {
    for (int32_t b = 0; b < s->n1; b++) {
      for (int32_t c = 0; c < s->n2; c++) {
        for (int32_t d = 0; d < s->n3; d++) {
          int32_t from = a * s->x0 + b * s->x1 + c * s->x2 + d * s->x3;
          int32_t to = a * s->y0 + b * s->y1 + c * s->y2 + d * s->y3;
          if (s->n5 == 1) {
            for (int32_t e = 0; e < s->n4; e++) sink[to + e * s->y4] = source[from + e * s->x4];
            continue;
          }
          for (int32_t e = 0; e < s->n4; e++) {
            es_copy(sink + to + e * s->y4, source + from + e * s->x4, s->n5);
          }
        }
      }
    }
  }
}
