/* Depthwise 3 x 3 convolutions by pairs of rows: what kernels written for one width are made of.
 *
 * Rows of the input are widened two at a time, and the zero point taken off, so that borders are
 * zero: for every channel a plane of words, each with the values of one column in both rows.
 * Output rows come from two such planes, which lie one behind the other and take turns: plane
 * `even` of them holds the upper pair of rows.
 *
 * The stream holds, for every channel, twice the weights as (top, middle) of each column, then as
 * (middle, bottom) of each column; twice the bias; multiplier, rounding constant and shift, see
 * es_requantize_block.
 *
 * Fast: stride 1 takes 16 cycles for the 18 MACs of two outputs, each word being used for three
 * columns, and 20 to requantize and store them, with constants in FPU registers, one cycle away.
 * Cycles per MAC with everything around it, on Cortex-M4 (zig -O3, no wait states): 2.6 for rows of
 * 24 and more, 2.9 for rows of 5, 4.8 to 5.6 with stride 2; es_depthwise_s8__dsp takes 13.8.
 *
 * The assembly keeps constants in s0 to s12, so the FPU must be switched on.
 *
 * Pre: |bias| + 255 * sum of |weights| < 2^30, as in es_blocks.h (the lowering checks it). */
#ifndef ES_PAIRS_H
#define ES_PAIRS_H

#include "es_blocks.h"

/* Stride 1: two output rows, `row` apart; 0: only the upper one exists. Stride 2: one. */
typedef void (*es_pairs_function)(const int32_t *planes, const int32_t *stream, int8_t *y,
                                  int32_t channels, int32_t row);

/* What the assembly computes; what follows `row` is written into it. Planes have `columns`, the
 * first of which is the input's column `left` of the leftmost window; others are zero. */
static inline void es_pairs_c(const int32_t *planes, const int32_t *stream, int8_t *y,
                              int32_t channels, int32_t row, int32_t stride, int32_t y_w,
                              int32_t columns, int32_t left, int32_t is_odd, int32_t y_min,
                              int32_t y_max) {
  for (int32_t c = 0; c < channels; c++, stream += 10, planes += 2 * columns) {
    const int32_t *upper = planes + is_odd * columns, *lower = planes + !is_odd * columns;
    int8_t *at = y + c;
    for (int32_t x = 0; x < y_w; x++, at += channels) {
      int32_t top = stream[6], bottom = top;
      for (int32_t k = 0; k < 3; k++) {
        int32_t column = x * stride + k - left;
        if (column < 0 || column >= columns) continue;
        int32_t a = upper[column], b = lower[column], first = stream[k], last = stream[3 + k];
        top = es_wrap_add(es_smlad(a, first, top), (int16_t)b * (last >> 16));
        bottom = es_wrap_add(es_smlad(b, last, bottom), (a >> 16) * (int16_t)first);
      }
      bottom = es_clamp(es_requantize_block(bottom, stream + 7), y_min, y_max);
      top = es_clamp(es_requantize_block(top, stream + 7), y_min, y_max);
      if (stride == 1) at[row] = (int8_t)bottom;
      at[0] = (int8_t)top;
    }
  }
}

/* Widen the columns of two rows, four channels of them, less the zero point; planes are `plane`
 * words apart. */
ES_OUTLINE void es_pack_four(const int8_t *a, const int8_t *b, int32_t a_step, int32_t b_step,
                             int32_t count, int32_t plane, int32_t minus_zero, int32_t *p) {
  ES_NO_UNROLL
  for (; count > 0; count--, a += a_step, b += b_step, p++) {
    uint32_t u = (uint32_t)es_load4(a), v = (uint32_t)es_load4(b);
    int32_t low = (int32_t)((u & 0xFFFF) | v << 16), high = (int32_t)(u >> 16 | (v >> 16 << 16));
    p[0] = es_sxtab16(minus_zero, low);
    p[plane] = es_sxtab16_ror8(minus_zero, low);
    p[2 * plane] = es_sxtab16(minus_zero, high);
    p[3 * plane] = es_sxtab16_ror8(minus_zero, high);
  }
}

/* Widen rows `iy` and `iy + 1` of x, less the zero point, into one of each channel's planes. */
ES_OUTLINE void es_pack_pair(const es_conv_shape *s, const int8_t *x, int32_t iy, int32_t columns,
                             int32_t left, int32_t *planes) {
  int32_t x_c = s->x_c, row = s->x_w * x_c, plane = 2 * columns;
  int32_t first = es_min(s->pad_left - left, columns), count = es_min(s->x_w, columns - first);
  int32_t outside = (int32_t)(((uint32_t)s->x_zero & 0xFF) * 0x01010101u);
  int32_t minus_zero = (int32_t)(((uint32_t)-s->x_zero & 0xFFFF) * 0x00010001u);
  int32_t has_a = iy >= 0 && iy < s->x_h, has_b = iy + 1 >= 0 && iy + 1 < s->x_h;
  const int8_t *a = has_a ? x + iy * row : (const int8_t *)&outside;
  const int8_t *b = has_b ? x + (iy + 1) * row : (const int8_t *)&outside;
  int32_t a_step = has_a ? x_c : 0, b_step = has_b ? x_c : 0, c = 0;
  for (int32_t *p = planes; count < columns && p < planes + x_c * plane; p += plane) {
    ES_NO_UNROLL
    for (int32_t i = 0; i < first; i++) p[i] = 0;
    ES_NO_UNROLL
    for (int32_t i = first + count; i < columns; i++) p[i] = 0;
  }
  planes += first;
  for (; c + 4 <= x_c; c += 4, planes += 4 * plane) {
    es_pack_four(a, b, a_step, b_step, count, plane, minus_zero, planes);
    if (has_a) a += 4;
    if (has_b) b += 4;
  }
  for (; c < x_c; c++, planes += plane) {
    ES_NO_UNROLL
    for (int32_t i = 0; i < count; i++) {
      uint32_t u = (uint32_t)(a[i * a_step] - s->x_zero), v = (uint32_t)(b[i * b_step] - s->x_zero);
      planes[i] = (int32_t)((u & 0xFFFF) | v << 16);
    }
    if (has_a) a++;
    if (has_b) b++;
  }
}

/* Depthwise convolution 3 x 3, stride 1 or 2 in both directions. Output rows are written after the
 * pairs of input rows that they need have been widened. */
static inline void es_depthwise_by_pairs(const es_conv_shape *s, const int8_t *x,
                                         const int32_t *stream, int32_t *planes, int8_t *y,
                                         int32_t columns, int32_t left, int32_t stride,
                                         es_pairs_function even, es_pairs_function odd) {
  int32_t row = s->y_w * s->y_c, rows = stride == 1 ? 2 : 1;
  for (int32_t b = 0; b < s->batches; b++, x += s->x_h * s->x_w * s->x_c) {
    int32_t iy = -s->pad_top, is_odd = 0;
    es_pack_pair(s, x, iy, columns, left, planes);
    for (int32_t oy = 0; oy < s->y_h; oy += rows, is_odd ^= 1) {
      iy += 2;
      es_pack_pair(s, x, iy, columns, left, planes + (is_odd ? 0 : columns));
      int32_t two = rows == 2 && oy + 1 < s->y_h;
      (is_odd ? odd : even)(planes, stream, y, s->x_c, two ? row : 0);
      y += two ? 2 * row : row;
    }
  }
}

#endif
