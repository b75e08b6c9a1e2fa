/* Matrix products by register blocks: what kernels written for one layer's shape are made of.
 *
 * Values are widened to int16 and doubled once, then a block multiplies a few channels by a few
 * pixels. Blocks are assembly; es_block_c says what they compute, and stands in for them elsewhere.
 *
 * The stream of a block holds, for every group of channels: twice the bias of each (the input's
 * zero point folded in); for every pair of values and every two channels one word with the bytes
 * (a, k), (b, k), (a, k + 1), (b, k + 1); then multiplier, rounding constant and shift of each.
 *
 * Fast: two channels by four pixels take 17 cycles for 16 MACs: 5 loads in two clusters (a load
 * behind a load takes one cycle), 2 widenings of the weights, 8 SMLAD; four channels by one pixel
 * 23. Requantization takes 4 instructions a value. Cycles per MAC with everything around it, on
 * Cortex-M4 (zig -O3, no wait states): 3 x 3 with 16 -> 16 channels of 32 x 32 1.19, with 64 -> 64
 * of 8 x 8 1.12, where es_conv_s8__dsp takes 2.79 and 2.05; 1 x 1, 64 -> 64 1.22 (3.19); dense
 * 640 -> 128 1.50 (es_dense_s8__dsp 2.5). */
#ifndef ES_BLOCKS_H
#define ES_BLOCKS_H

#include "es_conv.h"
#include "es_dsp.h"

typedef struct {
  int32_t channels;     /* of a group: 2 or 4 */
  int32_t pixels;       /* 1 to 4 */
  int32_t runs;         /* separate stretches of values of one pixel: rows of the filter */
  int32_t pairs;        /* pairs of values of a run */
  int32_t run_pitch;    /* from run to run, in values */
  int32_t pixel_pitch;  /* from pixel to pixel, in values */
  int32_t n_out;        /* output channels, and the distance of two output pixels */
  int32_t y_min, y_max;
} es_block;

typedef void (*es_block_function)(const int16_t *x, const int32_t *stream, int8_t *y);

/* round(sum * multiplier / 2^32), corrected by the sign, plus the constant, shifted: see
 * es_requantize_dsp. `sum` is twice the sum; the constant is 2^(n-1) + y_zero * 2^n. */
static inline int32_t es_requantize_block(int32_t sum, const int32_t *constants) {
  return es_high_product(sum, constants[0], constants[1] + (sum >> 31)) >> constants[2];
}

/* Multiply all channels by the pixels of one block. The last group of channels overlaps the one
 * before where n_out is no multiple of the group. */
static inline void es_block_c(const es_block *b, const int16_t *x, const int32_t *stream,
                              int8_t *y) {
  for (int32_t o = 0;;) {
    int32_t sums[16];
    for (int32_t i = 0; i < b->channels * b->pixels; i++) sums[i] = stream[i / b->pixels];
    stream += b->channels;
    for (int32_t r = 0; r < b->runs; r++) {
      const int16_t *values = x + r * b->run_pitch;
      for (int32_t k = 0; k < b->pairs; k++, values += 2) {
        for (int32_t i = 0; i < b->channels; i += 2) {
          int32_t word = *stream++;
          int32_t even = es_sxtb16(word), odd = es_sxtb16_ror8(word);
          for (int32_t j = 0; j < b->pixels; j++) {
            int32_t pair;
            es_copy(&pair, values + j * b->pixel_pitch, 4);
            int32_t *sum = sums + i * b->pixels + j;
            sum[0] = es_smlad(even, pair, sum[0]);
            sum[b->pixels] = es_smlad(odd, pair, sum[b->pixels]);
          }
        }
      }
    }
    for (int32_t i = 0; i < b->channels; i++, stream += 3) {
      for (int32_t j = 0; j < b->pixels; j++) {
        int32_t value = es_requantize_block(sums[i * b->pixels + j], stream);
        y[j * b->n_out + o + i] = (int8_t)es_clamp(value, b->y_min, b->y_max);
      }
    }
    if (o + b->channels == b->n_out) return;
    o = es_min(o + b->channels, b->n_out - b->channels);
  }
}

/* Widen and double n values, a multiple of 4. Each four come out in the order 0, 2, 1, 3. */
static inline void es_widen(const int8_t *from, int16_t *to, int32_t n) {
  for (; n >= 16; n -= 16, from += 16, to += 16) {
    int32_t words[4], wide[8];
    es_copy(words, from, 16);
    for (int32_t i = 0; i < 4; i++) {
      int32_t even = es_sxtb16(words[i]), odd = es_sxtb16_ror8(words[i]);
      wide[2 * i] = es_sadd16(even, even);
      wide[2 * i + 1] = es_sadd16(odd, odd);
    }
    es_copy(to, wide, 32);
  }
  for (; n > 0; n -= 4, from += 4, to += 4) {
    int32_t word = es_load4(from), even = es_sxtb16(word), odd = es_sxtb16_ror8(word);
    even = es_sadd16(even, even);
    odd = es_sadd16(odd, odd);
    es_copy(to, &even, 4);
    es_copy(to + 2, &odd, 4);
  }
}

/* Widen and double n values in their order. */
static inline void es_widen_in_order(const int8_t *from, int16_t *to, int32_t n) {
  const int8_t *end = from + n;
  for (; from + 4 <= end; from += 4, to += 4) {
    int32_t word = es_load4(from), even = es_sxtb16(word), odd = es_sxtb16_ror8(word);
    even = es_sadd16(even, even);
    odd = es_sadd16(odd, odd);
    int32_t low = (int32_t)(((uint32_t)even & 0xFFFF) | (uint32_t)odd << 16);
    int32_t high = (int32_t)(((uint32_t)odd & 0xFFFF0000) | (uint32_t)even >> 16);
    es_copy(to, &low, 4);
    es_copy(to + 2, &high, 4);
  }
  for (; from < end; from++, to++) *to = (int16_t)(2 * *from);
}

static inline void es_fill16(int16_t *to, int32_t value, int32_t n) {
  for (int32_t i = 0; i < n; i++) to[i] = (int16_t)value;
}

/* Convolution over a window of widened rows: k_h rows of
 * columns = (y_w - 1) * stride_w + (k_w - 1) + 1 pixels, x_c a multiple of 4, no dilation.
 * An output row is written after the last input row that it needs has been widened. */
static inline void es_conv_by_rows(const es_conv_shape *s, const int8_t *x, const int32_t *stream,
                                   int16_t *window, int8_t *y, es_block_function four,
                                   es_block_function rest) {
  int32_t columns = (s->y_w - 1) * s->stride_w + s->k_w, pitch = columns * s->x_c;
  int32_t left = es_min(s->pad_left, columns), inside = es_min(s->x_w, columns - left);
  int32_t right = columns - left - inside;
  for (int32_t b = 0; b < s->batches; b++, x += s->x_h * s->x_w * s->x_c) {
    int32_t next = -s->pad_top; /* the next row of x to widen */
    for (int32_t oy = 0; oy < s->y_h; oy++) {
      int32_t top = oy * s->stride_h - s->pad_top, kept = next - top;
      if (oy > 0 && kept > 0) {
        const int16_t *from = window + (s->k_h - kept) * pitch;
        for (int32_t i = 0; i < kept * pitch; i += 4) {
          int32_t pair[2];
          es_copy(pair, from + i, 8);
          es_copy(window + i, pair, 8);
        }
      }
      next = es_max(next, top);
      for (; next < top + s->k_h; next++) {
        int16_t *row = window + (next - top) * pitch;
        if (next < 0 || next >= s->x_h) {
          es_fill16(row, 2 * s->x_zero, pitch);
          continue;
        }
        es_fill16(row, 2 * s->x_zero, left * s->x_c);
        row += left * s->x_c;
        es_widen(x + next * s->x_w * s->x_c, row, inside * s->x_c);
        es_fill16(row + inside * s->x_c, 2 * s->x_zero, right * s->x_c);
      }
      int32_t ox = 0;
      for (; ox + 4 <= s->y_w; ox += 4, y += 4 * s->y_c) {
        four(window + ox * s->stride_w * s->x_c, stream, y);
      }
      if (ox < s->y_w) {
        rest(window + ox * s->stride_w * s->x_c, stream, y);
        y += (s->y_w - ox) * s->y_c;
      }
    }
  }
}

/* Convolution 1 x 1 without stride and borders, dense layers among them: `pixels` pixels of all
 * images, four at a time, `pitch` values from one to the next once widened (at least x_c; what is
 * between is multiplied by 0). `in_fours`: x_c is a multiple of 4, and values are widened by
 * es_widen. Four outputs are written after four inputs have been read. */
static inline void es_conv_by_pixels(const int8_t *x, const int32_t *stream, int16_t *values,
                                     int8_t *y, es_block_function four, es_block_function rest,
                                     int32_t pixels, int32_t x_c, int32_t y_c, int32_t pitch,
                                     int32_t in_fours) {
  for (; pixels > 0; pixels -= 4, y += 4 * y_c) {
    int32_t n = es_min(4, pixels);
    if (in_fours && pitch == x_c) {
      es_widen(x, values, n * x_c);
      x += n * x_c;
    } else {
      for (int32_t j = 0; j < n; j++, x += x_c) {
        if (in_fours) {
          es_widen(x, values + j * pitch, x_c);
        } else {
          es_widen_in_order(x, values + j * pitch, x_c);
        }
      }
    }
    if (n == 4) {
      four(values, stream, y);
    } else {
      rest(values, stream, y);
    }
  }
}

/* Convolution by columns: the windows of four output pixels, `pitch` values from one to the next
 * (at least k_h * k_w * x_c; what is between is multiplied by 0). Four outputs are written after
 * their windows have been copied. `in_fours`: k_w * x_c is a multiple of 4, and values are widened
 * by es_widen. */
static inline void es_conv_by_columns(const es_conv_shape *s, const int8_t *x,
                                      const int32_t *stream, int16_t *columns, int8_t *y,
                                      es_block_function four, es_block_function rest,
                                      int32_t pitch, int32_t in_fours) {
  int32_t line = s->k_w * s->x_c, pixels = s->y_h * s->y_w;
  for (int32_t b = 0; b < s->batches; b++, x += s->x_h * s->x_w * s->x_c) {
    int32_t oy = 0, ox = 0;
    for (int32_t at = 0; at < pixels; at += 4) {
      int32_t n = es_min(4, pixels - at);
      for (int32_t j = 0; j < n; j++) {
        int16_t *to = columns + j * pitch;
        int32_t iy = oy * s->stride_h - s->pad_top, ix = ox * s->stride_w - s->pad_left;
        int32_t whole = ix >= 0 && ix + (s->k_w - 1) * s->dilation_w < s->x_w;
        for (int32_t ky = 0; ky < s->k_h; ky++, iy += s->dilation_h, to += line) {
          if (iy < 0 || iy >= s->x_h) {
            es_fill16(to, 2 * s->x_zero, line);
          } else if (whole && s->dilation_w == 1) {
            const int8_t *from = x + (iy * s->x_w + ix) * s->x_c;
            if (in_fours) {
              es_widen(from, to, line);
            } else {
              es_widen_in_order(from, to, line);
            }
          } else {
            const int8_t *from = x + iy * s->x_w * s->x_c;
            for (int32_t i = 0; i < line; i++) {
              int32_t at_line = in_fours ? (i & ~3) + ((i & 1) << 1 | (i >> 1 & 1)) : i;
              int32_t column = ix + at_line / s->x_c * s->dilation_w;
              int32_t inside = column >= 0 && column < s->x_w;
              int32_t value = inside ? from[column * s->x_c + at_line % s->x_c] : s->x_zero;
              to[i] = (int16_t)(2 * value);
            }
          }
        }
        if (++ox == s->y_w) ox = 0, oy++;
      }
      if (n == 4) {
        four(columns, stream, y);
      } else {
        rest(columns, stream, y);
      }
      y += n * s->y_c;
    }
  }
}

#endif
