/* Depthwise 3 x 3 convolutions by pairs of rows: what kernels written for one width are made of.
 *
 * Rows of the input are widened two at a time: for every channel a plane of words, each with the
 * values of one column in both rows. Output rows come from two such planes, which lie one behind
 * the other and take turns: plane `even` of them holds the upper pair of rows.
 *
 * The stream holds, for every channel, twice the weights as (top, middle) of each column, then as
 * (middle, bottom) of each column; twice the bias (the input's zero point folded in); multiplier,
 * rounding constant and shift, see es_requantize_block. */
#ifndef ES_PAIRS_H
#define ES_PAIRS_H

#include "es_blocks.h"

/* Stride 1: two output rows, `row` apart; 0: only the upper one exists. Stride 2: one. */
typedef void (*es_pairs_function)(const int32_t *planes, const int32_t *stream, int8_t *y,
                                  int32_t channels, int32_t row);

/* What the assembly computes; `stride`, `columns` of a plane and the clamp are written into it. */
static inline void es_pairs_c(const int32_t *planes, const int32_t *stream, int8_t *y,
                              int32_t channels, int32_t row, int32_t stride, int32_t columns,
                              int32_t is_odd, int32_t y_min, int32_t y_max) {
  for (int32_t c = 0; c < channels; c++, stream += 10, planes += 2 * columns) {
    const int32_t *upper = planes + is_odd * columns, *lower = planes + !is_odd * columns;
    int8_t *at = y + c;
    for (int32_t x = 0; x + 3 <= columns; x += stride, at += channels) {
      int32_t top = stream[6], bottom = top;
      for (int32_t k = 0; k < 3; k++) {
        int32_t a = upper[x + k], b = lower[x + k], first = stream[k], last = stream[3 + k];
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

/* Widen rows `iy` and `iy + 1` of x, with borders of x_zero, into one of each channel's planes. */
static inline void es_pack_pair(const es_conv_shape *s, const int8_t *x, int32_t iy,
                                int32_t columns, int32_t *planes) {
  int32_t x_c = s->x_c, first = es_min(s->pad_left, columns);
  int32_t count = es_min(s->x_w, columns - first);
  int32_t zero = s->x_zero & 0xFF;
  zero |= zero << 8, zero |= (int32_t)((uint32_t)zero << 16);
  int32_t has_a = iy >= 0 && iy < s->x_h, has_b = iy + 1 >= 0 && iy + 1 < s->x_h;
  const int8_t *a = x + iy * s->x_w * x_c, *b = a + s->x_w * x_c;
  if (!has_a) a = (const int8_t *)&zero;
  if (!has_b) b = (const int8_t *)&zero;
  int32_t border = (int32_t)(((uint32_t)s->x_zero & 0xFFFF) | (uint32_t)s->x_zero << 16);
  for (int32_t c = 0; c < x_c; c++) {
    int32_t *plane = planes + 2 * c * columns;
    for (int32_t i = 0; i < first; i++) plane[i] = border;
    for (int32_t i = first + count; i < columns; i++) plane[i] = border;
  }
  planes += first;
  int32_t a_step = has_a ? x_c : 0, b_step = has_b ? x_c : 0;
  int32_t c = 0;
  for (; c + 4 <= x_c; c += 4) {
    const int8_t *from_a = has_a ? a + c : a, *from_b = has_b ? b + c : b;
    int32_t *p0 = planes + 2 * c * columns, *p2 = p0 + 4 * columns;
    for (int32_t i = 0; i < count; i++, from_a += a_step, from_b += b_step) {
      uint32_t u = (uint32_t)es_load4(from_a), v = (uint32_t)es_load4(from_b);
      int32_t low = (int32_t)((u & 0xFFFF) | v << 16), high = (int32_t)(u >> 16 | (v >> 16 << 16));
      p0[i] = es_sxtb16(low);
      p0[i + 2 * columns] = es_sxtb16_ror8(low);
      p2[i] = es_sxtb16(high);
      p2[i + 2 * columns] = es_sxtb16_ror8(high);
    }
  }
  for (; c < x_c; c++) {
    const int8_t *from_a = has_a ? a + c : a, *from_b = has_b ? b + c : b;
    int32_t *p0 = planes + 2 * c * columns;
    for (int32_t i = 0; i < count; i++, from_a += a_step, from_b += b_step) {
      p0[i] = (int32_t)(((uint32_t)*from_a & 0xFFFF) | (uint32_t)*from_b << 16);
    }
  }
}

/* Depthwise convolution 3 x 3, stride 1 or 2 in both directions. Output rows are written after the
 * pairs of input rows that they need have been widened. */
static inline void es_depthwise_by_pairs(const es_conv_shape *s, const int8_t *x,
                                         const int32_t *stream, int32_t *planes, int8_t *y,
                                         int32_t columns, int32_t stride, es_pairs_function even,
                                         es_pairs_function odd) {
  int32_t row = s->y_w * s->y_c, rows = stride == 1 ? 2 : 1;
  for (int32_t b = 0; b < s->batches; b++, x += s->x_h * s->x_w * s->x_c) {
    int32_t iy = -s->pad_top, is_odd = 0;
    es_pack_pair(s, x, iy, columns, planes);
    for (int32_t oy = 0; oy < s->y_h; oy += rows, is_odd ^= 1) {
      iy += 2;
      es_pack_pair(s, x, iy, columns, planes + (is_odd ? 0 : columns));
      int32_t two = rows == 2 && oy + 1 < s->y_h;
      (is_odd ? odd : even)(planes, stream, y, s->x_c, two ? row : 0);
      y += two ? 2 * row : row;
    }
  }
}

#endif
