/* Convolution, int8, for cores without SIMD; strided, dilated, not grouped.
 *
 *   y[b][oy][ox][o] = clamp(requantize(bias[o] + sum_ky,kx,c x[...] * w[o][ky][kx][c]) + y_zero)
 *   with x as in es_conv_s8__ref, its zero point folded into the bias
 *
 *   x        [in]       int8 (batches, x_h, x_w, x_c)
 *   stream   [in]       int32: the filters, below
 *   columns  [scratch]  int32 (2 * K), K = k_h * k_w * x_c rounded up to a multiple of 4
 *   y        [out]      int8 (batches, y_h, y_w, y_c); may begin below x as far as the lowering
 *                       says: four pixels are written after all that they need has been read
 *
 * The stream has, for every filter, its bias; flags and, for every 4 values, a word of 4 weights;
 * multiplier and shift of es_requantize_scalar. Flags, from the highest bit of a word down, stand
 * before the weights they are for: 0 adds 4 products; 1 adds 4 and takes the sums out after them,
 * and a second bit says whether after the first 2 as well. The last bit of a flag word is a 1 with
 * only zeros below it; another word of flags follows unless the filter is at its end.
 *
 * Pre:   every filter's |bias| + 128 * sum |w| < 2^29; all shifts right by 1 to 22; the sums
 *        between two flags that take them out lie in (-2^15, 2^15), for all values of x.
 * Exact: es_conv_s8__ref, bit for bit.
 * Fast:  two products to a multiplication: with x0 and x1 of two pixels in one word,
 *        (x0 + x1 * 2^16) * w = x0 * w + x1 * w * 2^16 (mod 2^32), and a sum S of such products
 *        still holds both sums: the upper is (S >> 16) + bit 15 of S. So only that one is taken out
 *        in time, and the sum of all S gives the lower one, mod 2^32, at the end. */
#include "es_conv.h"
#include "es_scalar.h"

/* Four outputs of every filter, y to y_end. */
#if ES_SCALAR_ASM

#define ES_TAKE_OUT                                                                         \
  "movs r6, #0\n mov r5, r12\n asrs r5, r5, #16\n adcs r5, r6\n add r9, r5\n add r8, r12\n" \
  "mov r5, lr\n asrs r5, r5, #16\n adcs r5, r6\n add r11, r5\n add r10, lr\n"               \
  "mov r12, r6\n mov lr, r6\n"
#define ES_ADD_TWO "ldmia r0!, {r5, r6}\n muls r5, r4, r5\n muls r6, r4, r6\n" \
  "add r12, r5\n add lr, r6\n"

/* r0 columns, r1 stream, r2 flags, r3 four weights, r4 one of them, r5 to r7 values; r12 and lr are
 * the sums S of two pixels each; r8 and r10 the sums of S, r9 and r11 those of H. */
__attribute__((naked, noinline)) static void es_filters(
    const int32_t *columns ES_UNUSED, const int32_t *stream ES_UNUSED, es_four *four ES_UNUSED,
    int8_t *y ES_UNUSED, const int32_t *end ES_UNUSED, const int8_t *y_end ES_UNUSED) {
  __asm__(
      ES_ENTER
      "5:\n ldr r0, [sp]\n ldr r1, [sp, #4]\n"
      "ldmia r1!, {r3}\n"
      "mov r9, r3\n mov r11, r3\n"
      "lsls r4, r3, #16\n adds r4, r4, r3\n mov r8, r4\n mov r10, r4\n"
      "movs r4, #0\n mov r12, r4\n mov lr, r4\n"
      "0:\n" /* more flags */
      "ldmia r1!, {r2}\n lsls r2, r2, #1\n bcs 2f\n"
      "1:\n" /* four values */
      "ldmia r1!, {r3}\n ldmia r0!, {r5, r6, r7}\n"
      "sxtb r4, r3\n"
      "muls r5, r4, r5\n muls r6, r4, r6\n add r12, r5\n add lr, r6\n"
      "sxth r4, r3\n asrs r4, r4, #8\n"
      "muls r7, r4, r7\n add r12, r7\n"
      "ldmia r0!, {r5, r6, r7}\n"
      "muls r5, r4, r5\n add lr, r5\n"
      "asrs r4, r3, #16\n sxtb r4, r4\n"
      "muls r6, r4, r6\n muls r7, r4, r7\n add r12, r6\n add lr, r7\n"
      "asrs r4, r3, #24\n" ES_ADD_TWO
      "lsls r2, r2, #1\n bcc 1b\n"
      "2:\n" /* four values, the sums taken out; or the end of the flags */
      "beq 4f\n"
      "ldmia r1!, {r3}\n"
      "sxtb r4, r3\n" ES_ADD_TWO
      "sxth r4, r3\n asrs r4, r4, #8\n" ES_ADD_TWO
      "lsls r2, r2, #1\n bcc 3f\n" ES_TAKE_OUT
      "3:\n"
      "asrs r4, r3, #16\n sxtb r4, r4\n" ES_ADD_TWO
      "asrs r4, r3, #24\n" ES_ADD_TWO ES_TAKE_OUT
      "lsls r2, r2, #1\n bcc 1b\n b 2b\n"
      "4:\n"
      "ldr r5, [sp, #52]\n cmp r0, r5\n bne 0b\n"
      "ldr r0, [sp, #8]\n adds r0, #20\n"
      "mov r4, r9\n mov r2, r8\n lsls r3, r4, #16\n subs r3, r2, r3\n"
      "mov r6, r11\n mov r2, r10\n lsls r5, r6, #16\n subs r5, r2, r5\n"
      "stmia r0!, {r3, r4, r5, r6}\n subs r0, #36\n" ES_STORE_FOUR(4)
      "ldr r3, [sp, #12]\n adds r3, #1\n str r3, [sp, #12]\n"
      "ldr r2, [sp, #56]\n cmp r3, r2\n beq 6f\n b 5b\n 6:\n" ES_LEAVE);
}

#else

static const int32_t *es_filter(const int32_t *columns, const int32_t *stream, es_four *four,
                                int8_t *y, const int32_t *end) {
  int32_t bias = *stream++;
  uint32_t all0 = (uint32_t)bias, all1 = all0, s0 = 0, s1 = 0, flags = (uint32_t)*stream++;
  int32_t high0 = 0, high1 = 0;
  for (;;) {
    int32_t flag = (int32_t)flags < 0;
    flags <<= 1;
    if (flag && flags == 0) {
      if (columns == end) break;
      flags = (uint32_t)*stream++;
      continue;
    }
    const int8_t *w = (const int8_t *)stream++; /* in this order on little-endian cores */
    s0 += (uint32_t)columns[0] * (uint32_t)w[0] + (uint32_t)columns[2] * (uint32_t)w[1];
    s1 += (uint32_t)columns[1] * (uint32_t)w[0] + (uint32_t)columns[3] * (uint32_t)w[1];
    if (flag && (int32_t)flags < 0) {
      high0 += ((int32_t)s0 >> 16) + (int32_t)(s0 >> 15 & 1);
      high1 += ((int32_t)s1 >> 16) + (int32_t)(s1 >> 15 & 1);
      all0 += s0, all1 += s1;
      s0 = s1 = 0;
    }
    s0 += (uint32_t)columns[4] * (uint32_t)w[2] + (uint32_t)columns[6] * (uint32_t)w[3];
    s1 += (uint32_t)columns[5] * (uint32_t)w[2] + (uint32_t)columns[7] * (uint32_t)w[3];
    columns += 8;
    if (flag) {
      flags <<= 1;
      high0 += ((int32_t)s0 >> 16) + (int32_t)(s0 >> 15 & 1);
      high1 += ((int32_t)s1 >> 16) + (int32_t)(s1 >> 15 & 1);
      all0 += s0, all1 += s1;
      s0 = s1 = 0;
    }
  }
  four->sums[0] = (int32_t)(all0 - ((uint32_t)high0 << 16));
  four->sums[1] = bias + high0;
  four->sums[2] = (int32_t)(all1 - ((uint32_t)high1 << 16));
  four->sums[3] = bias + high1;
  return es_store_four(four, four->sums, stream, y);
}

static void es_filters(const int32_t *columns, const int32_t *stream, es_four *four, int8_t *y,
                       const int32_t *end, const int8_t *y_end) {
  for (; y < y_end; y++) stream = es_filter(columns, stream, four, y, end);
}

#endif

#if defined(__clang__)
#define ES_NO_UNROLL _Pragma("clang loop unroll(disable)")
#elif defined(__GNUC__)
#define ES_NO_UNROLL _Pragma("GCC unroll 1")
#else
#define ES_NO_UNROLL
#endif

/* n words of two values; a step of 0 repeats one value. Not inlined: the copies of a compiler that
 * unrolls them keep their pointers on the stack. */
ES_NOINLINE static int32_t *es_pack(const int8_t *a, int32_t a_step, const int8_t *b,
                                    int32_t b_step, int32_t n, int32_t *to) {
  int32_t *end = to + 2 * n;
  if (a_step & b_step) {
    ES_NO_UNROLL
    for (; n >= 4; n -= 4, a += 4, b += 4, to += 8) {
      to[0] = a[0] + (int32_t)((uint32_t)b[0] << 16);
      to[2] = a[1] + (int32_t)((uint32_t)b[1] << 16);
      to[4] = a[2] + (int32_t)((uint32_t)b[2] << 16);
      to[6] = a[3] + (int32_t)((uint32_t)b[3] << 16);
    }
  }
  ES_NO_UNROLL
  for (; to < end; a += a_step, b += b_step, to += 2) {
    *to = *a + (int32_t)((uint32_t)*b << 16);
  }
  return to;
}

/* The windows of two pixels at (ay, ax) and (by, bx) of the padded image, side by side. */
static void es_pack_windows(const es_conv_shape *s, const int8_t *x, int32_t ay, int32_t ax,
                            int32_t by, int32_t bx, int32_t *to) {
  const int8_t zero = (int8_t)s->x_zero;
  int32_t reach = (s->k_w - 1) * s->dilation_w, last = s->x_w - reach, x_c = s->x_c;
  int32_t in_line = s->dilation_w == 1 && ax >= 0 && bx >= 0 && ax < last && bx < last;
  for (int32_t ky = 0; ky < s->k_h; ky++, ay += s->dilation_h, by += s->dilation_h) {
    int32_t a_in = ay >= 0 && ay < s->x_h, b_in = by >= 0 && by < s->x_h;
    int32_t a_at = (ay * s->x_w + ax) * x_c, b_at = (by * s->x_w + bx) * x_c;
    if (in_line) {
      to = es_pack(a_in ? x + a_at : &zero, a_in, b_in ? x + b_at : &zero, b_in, s->k_w * x_c, to);
      continue;
    }
    for (int32_t kx = 0; kx <= reach; kx += s->dilation_w) {
      int32_t a_on = a_in && ax + kx >= 0 && ax + kx < s->x_w;
      int32_t b_on = b_in && bx + kx >= 0 && bx + kx < s->x_w;
      to = es_pack(a_on ? x + a_at + kx * x_c : &zero, a_on, b_on ? x + b_at + kx * x_c : &zero,
                   b_on, x_c, to);
    }
  }
}

void es_conv_s8__scalar(const es_conv_shape *shape, const int8_t *x, const int32_t *stream,
                        int32_t *columns, int8_t *y) {
  const es_conv_shape *s = shape;
  int32_t pixels = s->y_h * s->y_w, y_c = s->y_c;
  const int32_t *end = columns + (((s->k_h * s->k_w * s->x_c + 3) & ~3) << 1);
  es_four four = {y_c, 2 * s->y_zero + 1, s->y_min, s->y_max, 0, {0, 0, 0, 0}};
  for (int32_t b = 0; b < s->batches; b++, x += s->x_h * s->x_w * s->x_c) {
    int32_t oy = 0, ox = 0;
    for (int32_t left = pixels; left > 0; left -= 4) {
      int32_t n = es_min(4, left);
      for (int32_t pair = 0; pair < n; pair += 2) {
        int32_t ay = oy * s->stride_h - s->pad_top, ax = ox * s->stride_w - s->pad_left;
        int32_t by = ay, bx = ax;
        if (++ox == s->y_w) ox = 0, oy++;
        if (pair + 1 < n) {
          by = oy * s->stride_h - s->pad_top, bx = ox * s->stride_w - s->pad_left;
          if (++ox == s->y_w) ox = 0, oy++;
        }
        es_pack_windows(s, x, ay, ax, by, bx, columns + (pair >> 1));
      }
      four.n_bytes = n << 2;
      es_filters(columns, stream, &four, y, end, y + y_c);
      y += n * y_c;
    }
  }
}
