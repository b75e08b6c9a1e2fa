/* Convolution, int8, for cores with many registers and no SIMD; strided, dilated, not grouped.
 *
 *   y[b][oy][ox][o] = clamp(requantize(bias[o] + sum_ky,kx,c x[...] * w[o][ky][kx][c]) + y_zero)
 *   with x as in es_conv_s8__ref, its zero point folded into the bias
 *
 *   x        [in]       int8 (batches, x_h, x_w, x_c)
 *   stream   [in]       int32: for every four filters their 4 biases; for every value, filled up to
 *                       an even number, the 4 weights; multiplier and shift of
 *                       es_requantize_scalar of each. The last y_c % 4 filters follow one by one:
 *                       bias, weights filled up to a multiple of 4, scale.
 *   columns  [scratch]  int8 (K, 4), K = k_h * k_w * x_c made even: windows of four output pixels
 *   y        [out]      int8 (batches, y_h, y_w, y_c); may begin below x as far as the lowering
 *                       says: four pixels are written after all that they need has been read
 *
 * Pre:   every filter's |bias| + 128 * sum |w| < 2^29; all shifts right by 1 to 22.
 * Exact: es_conv_s8__ref, bit for bit.
 * Fast:  16 products take 8 loads: with 16 sums, 28 registers are just enough. */
#include "es_conv.h"
#include "es_scalar.h"

/* Four filters by four pixels; returns the end of the weights. */
#if defined(__riscv) && __riscv_xlen == 32 && defined(__riscv_mul) && defined(__GNUC__)

#define ES_ROW(W, A, B, C, D)                                                             \
  "mul t6, " W ", t0\n mul a3, " W ", t1\n add " A ", " A ", t6\n add " B ", " B ", a3\n" \
  "mul t6, " W ", t2\n mul a3, " W ", t3\n add " C ", " C ", t6\n add " D ", " D ", a3\n"
#define ES_VALUE(X0, X1, X2, X3, W0, W1, W2, W3)                                    \
  "lb t0, " X0 "(a0)\n lb t1, " X1 "(a0)\n lb t2, " X2 "(a0)\n lb t3, " X3 "(a0)\n" \
  "lb t4, " W0 "(a2)\n lb t5, " W1 "(a2)\n"                                         \
  ES_ROW("t4", "s0", "s1", "s2", "s3") "lb t4, " W2 "(a2)\n"                        \
  ES_ROW("t5", "s4", "s5", "s6", "s7") "lb t5, " W3 "(a2)\n"                        \
  ES_ROW("t4", "s8", "s9", "s10", "s11") ES_ROW("t5", "a4", "a5", "a6", "a7")

/* a0 columns, a1 their end, a2 weights, t0 to t3 values, t4 and t5 weights, t6 and a3 products. */
__attribute__((naked, noinline)) static const int32_t *es_four_filters(
    const int8_t *columns ES_UNUSED, const int8_t *end ES_UNUSED,
    const int32_t *stream ES_UNUSED, int32_t *sums ES_UNUSED) {
  __asm__(
      "addi sp, sp, -64\n"
      "sw s0, 0(sp)\n sw s1, 4(sp)\n sw s2, 8(sp)\n sw s3, 12(sp)\n"
      "sw s4, 16(sp)\n sw s5, 20(sp)\n sw s6, 24(sp)\n sw s7, 28(sp)\n"
      "sw s8, 32(sp)\n sw s9, 36(sp)\n sw s10, 40(sp)\n sw s11, 44(sp)\n sw a3, 48(sp)\n"
      "lw s0, 0(a2)\n lw s4, 4(a2)\n lw s8, 8(a2)\n lw a4, 12(a2)\n addi a2, a2, 16\n"
      "mv s1, s0\n mv s2, s0\n mv s3, s0\n mv s5, s4\n mv s6, s4\n mv s7, s4\n"
      "mv s9, s8\n mv s10, s8\n mv s11, s8\n mv a5, a4\n mv a6, a4\n mv a7, a4\n"
      "1:\n"
      ES_VALUE("0", "1", "2", "3", "0", "1", "2", "3")
      ES_VALUE("4", "5", "6", "7", "4", "5", "6", "7")
      "addi a0, a0, 8\n addi a2, a2, 8\n bne a0, a1, 1b\n"
      "lw a3, 48(sp)\n"
      "sw s0, 0(a3)\n sw s1, 4(a3)\n sw s2, 8(a3)\n sw s3, 12(a3)\n"
      "sw s4, 16(a3)\n sw s5, 20(a3)\n sw s6, 24(a3)\n sw s7, 28(a3)\n"
      "sw s8, 32(a3)\n sw s9, 36(a3)\n sw s10, 40(a3)\n sw s11, 44(a3)\n"
      "sw a4, 48(a3)\n sw a5, 52(a3)\n sw a6, 56(a3)\n sw a7, 60(a3)\n"
      "lw s0, 0(sp)\n lw s1, 4(sp)\n lw s2, 8(sp)\n lw s3, 12(sp)\n"
      "lw s4, 16(sp)\n lw s5, 20(sp)\n lw s6, 24(sp)\n lw s7, 28(sp)\n"
      "lw s8, 32(sp)\n lw s9, 36(sp)\n lw s10, 40(sp)\n lw s11, 44(sp)\n"
      "mv a0, a2\n addi sp, sp, 64\n ret\n");
}

#else

static const int32_t *es_four_filters(const int8_t *columns, const int8_t *end,
                                      const int32_t *stream, int32_t *sums) {
  int32_t a0 = stream[0], a1 = a0, a2 = a0, a3 = a0, b0 = stream[1], b1 = b0, b2 = b0, b3 = b0;
  int32_t c0 = stream[2], c1 = c0, c2 = c0, c3 = c0, d0 = stream[3], d1 = d0, d2 = d0, d3 = d0;
  const int8_t *w = (const int8_t *)(stream + 4); /* in this order on little-endian cores */
  for (; columns < end; columns += 4, w += 4) {
    int32_t p = columns[0], q = columns[1], r = columns[2], s = columns[3];
    int32_t a = w[0], b = w[1], c = w[2], d = w[3];
    a0 += a * p, a1 += a * q, a2 += a * r, a3 += a * s;
    b0 += b * p, b1 += b * q, b2 += b * r, b3 += b * s;
    c0 += c * p, c1 += c * q, c2 += c * r, c3 += c * s;
    d0 += d * p, d1 += d * q, d2 += d * r, d3 += d * s;
  }
  sums[0] = a0, sums[1] = a1, sums[2] = a2, sums[3] = a3;
  sums[4] = b0, sums[5] = b1, sums[6] = b2, sums[7] = b3;
  sums[8] = c0, sums[9] = c1, sums[10] = c2, sums[11] = c3;
  sums[12] = d0, sums[13] = d1, sums[14] = d2, sums[15] = d3;
  return (const int32_t *)(const void *)w;
}

#endif

/* One filter by four pixels; returns the end of the weights. */
static const int32_t *es_one_filter(const int8_t *columns, const int8_t *end,
                                    const int32_t *stream, int32_t *sums) {
  int32_t a = *stream++, b = a, c = a, d = a, k = (int32_t)(end - columns) >> 2;
  const int8_t *w = (const int8_t *)stream;
  for (; columns < end; columns += 4, w++) {
    a += *w * columns[0], b += *w * columns[1], c += *w * columns[2], d += *w * columns[3];
  }
  sums[0] = a, sums[1] = b, sums[2] = c, sums[3] = d;
  return stream + ((k + 3) >> 2);
}

/* The window at (iy, ix) of the padded image, every fourth byte. */
static void es_column(const es_conv_shape *s, const int8_t *x, int32_t iy, int32_t ix,
                      int8_t *to) {
  const int8_t zero = (int8_t)s->x_zero;
  int32_t reach = (s->k_w - 1) * s->dilation_w, x_c = s->x_c;
  int32_t in_line = s->dilation_w == 1 && ix >= 0 && ix + reach < s->x_w;
  int32_t n = in_line ? s->k_w * x_c : x_c;
  for (int32_t ky = 0; ky < s->k_h; ky++, iy += s->dilation_h) {
    for (int32_t kx = 0; kx <= (in_line ? 0 : reach); kx += s->dilation_w) {
      int32_t column = ix + kx;
      if (iy >= 0 && iy < s->x_h && column >= 0 && column < s->x_w) {
        const int8_t *from = x + (iy * s->x_w + column) * x_c;
        for (const int8_t *end = from + n; from < end; from++, to += 4) *to = *from;
      } else {
        for (const int8_t *end = to + 4 * n; to < end; to += 4) *to = zero;
      }
    }
  }
}

void es_conv_s8__rv32(const es_conv_shape *shape, const int8_t *x, const int32_t *stream,
                      int8_t *columns, int8_t *y) {
  const es_conv_shape *s = shape;
  int32_t pixels = s->y_h * s->y_w, y_c = s->y_c;
  const int8_t *end = columns + (((s->k_h * s->k_w * s->x_c + 1) & ~1) << 2);
  es_four four = {y_c, 2 * s->y_zero + 1, s->y_min, s->y_max, 0, {0, 0, 0, 0}};
  for (int32_t b = 0; b < s->batches; b++, x += s->x_h * s->x_w * s->x_c) {
    int32_t oy = 0, ox = 0;
    for (int32_t left = pixels, n; left > 0; left -= n, y += n * y_c) {
      const int32_t *at = stream;
      n = es_min(4, left);
      for (int32_t j = 0; j < n; j++) {
        es_column(s, x, oy * s->stride_h - s->pad_top, ox * s->stride_w - s->pad_left, columns + j);
        if (++ox == s->y_w) ox = 0, oy++;
      }
      four.n_bytes = n << 2;
      for (int32_t o = 0, filters; o < y_c; o += filters) {
        int32_t sums[16];
        filters = y_c - o < 4 ? 1 : 4;
        at = filters == 4 ? es_four_filters(columns, end, at, sums)
                          : es_one_filter(columns, end, at, sums);
        for (int32_t i = 0; i < filters; i++) {
          at = es_store_four(&four, sums + 4 * i, at, y + o + i);
        }
      }
    }
  }
}
