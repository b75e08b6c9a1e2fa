/* Convolution as es_conv_s8__ref, two pixels and two channels at a time; may run over its input.
 *
 *   x           [in]       int8 (batches, x_h, x_w, x_c)
 *   w           [in]       int8 (y_c, k_h, k_w, k_c), symmetric
 *   bias        [in]       int32 (y_c), of the layer minus x_zero * sum of the filter's weights
 *   scales      [in]       int32 (y_c), multipliers of es_requantize, then int8 (y_c), its shifts,
 *                          all -1 or less
 *   columns     [scratch]  int8 (2, groups, k_h, k_w, k_c): the windows of two output pixels
 *   y           [out]      int8 (batches, y_h, y_w, y_c); may lie over x as far as every window is
 *                          read before anything is written over it: two pixels of y are written
 *                          after their windows have been copied to columns
 *
 * Pre:   |bias[o]| + 128 * sum |w[o]| < 2^30 (es_requantize_dsp; the lowering checks it).
 * Exact: es_conv_s8__ref, bit for bit.
 *
 * Fast:  a word of four weights or values is loaded and widened once for two multiplications of two
 *        lanes each: 8 loads, 8 widenings and 8 SMLAD for 16 MACs, 1.9 cycles per MAC. With
 *        everything around it 2.0 to 3.2 on Cortex-M4, where es_conv_s8__ref takes 7 to 67. */
#include "es_conv.h"
#include "es_unpack.h"

/* Copy the window of output pixel `at` of the current image, group by group. */
static void es_gather(const es_conv_shape *s, const int8_t *x, int32_t at, int8_t *column) {
  int32_t top = at / s->y_w * s->stride_h - s->pad_top;
  int32_t left = at % s->y_w * s->stride_w - s->pad_left;
  for (int32_t from = 0; from < s->x_c; from += s->k_c) {
    for (int32_t ky = 0, iy = top; ky < s->k_h; ky++, iy += s->dilation_h) {
      for (int32_t kx = 0, ix = left; kx < s->k_w; kx++, ix += s->dilation_w) {
        if (iy < 0 || iy >= s->x_h || ix < 0 || ix >= s->x_w) {
          es_fill(column, s->x_zero, s->k_c);
        } else {
          es_copy(column, x + (iy * s->x_w + ix) * s->x_c + from, s->k_c);
        }
        column += s->k_c;
      }
    }
  }
}

void es_conv_s8__dsp(const es_conv_packed_shape *shape, const int8_t *x, const int8_t *w,
                     const int32_t *bias, const int32_t *scales, int8_t *columns, int8_t *y) {
  es_conv_shape unpacked;
  const es_conv_shape *s = &unpacked;
  es_unpack(shape, &unpacked);
  int32_t k = s->k_h * s->k_w * s->k_c, groups = s->x_c / s->k_c;
  int32_t per_group = s->y_c / groups, pixels = s->y_h * s->y_w;
  int32_t levels[3] = {s->y_zero, s->y_min, s->y_max}, y_c = s->y_c;
  const int8_t *shift = (const int8_t *)(scales + s->y_c);
  for (int32_t b = 0; b < s->batches; b++, x += s->x_h * s->x_w * s->x_c) {
    for (int32_t at = 0; at < pixels; at += 2) {
      int32_t next = at + 1 < pixels ? k * groups : 0; /* the last one alone is computed twice */
      es_gather(s, x, at, columns);
      if (next) es_gather(s, x, at + 1, columns + next);
      const int8_t *weights = w, *column = columns;
      int8_t *second = next ? y + y_c : y;
      for (int32_t o = 0, left = per_group; o < y_c;) {
        int32_t pair = left > 1 ? 1 : 0; /* the last channel of a group alone, too */
        int32_t step = pair * k;
        int32_t sums[4] = {bias[o], bias[o], bias[o + pair], bias[o + pair]};
        if (k >= 4) es_dot_2x2(weights, step, column, next, k >> 2, sums);
        for (int32_t i = k & ~3; i < k; i++) {
          sums[0] += weights[i] * column[i];
          sums[1] += weights[i] * column[i + next];
          sums[2] += weights[i + step] * column[i];
          sums[3] += weights[i + step] * column[i + next];
        }
        es_finish(sums, 2, 1 + pair, scales + o, shift + o, levels, y + o);
        es_finish(sums + 1, 2, 1 + pair, scales + o, shift + o, levels, second + o);
        o += 1 + pair;
        left -= 1 + pair;
        weights += (1 + pair) * k;
        if (left == 0) {
          left = per_group;
          column += k;
        }
      }
      y = second + y_c;
    }
  }
}
