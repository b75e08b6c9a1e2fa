/* Depthwise convolution, int8, for cores without SIMD, four outputs of a channel at a time.
 *
 *   x         [in]       int8 (batches, x_h, x_w, x_c)
 *   w         [in]       int8 (y_c, k_h, k_w), symmetric
 *   channels  [in]       int32 (y_c, 3): bias, of the layer minus x_zero * sum of the filter's
 *                        weights; multiplier and shift of es_requantize_scalar
 *   window    [scratch]  int8 (rows, columns, x_c), aligned to 4 bytes: the input rows that are
 *                        needed at once, with
 *                        rows = (at_once - 1) * stride_h + (k_h - 1) * dilation_h + 1,
 *                        columns = (y_w - 1) * stride_w + (k_w - 1) * dilation_w + 1
 *   y         [out]      int8 (batches, y_h, y_w, y_c); may lie over x as far as a row of x is read
 *                        before anything is written over it: output rows are written after the
 *                        last row that they need has been copied to window
 *   at_once              output rows that are computed together
 *
 * Pre:   every filter's |bias| + 128 * sum |w| < 2^29; all shifts right by 1 to 22.
 * Exact: es_depthwise_s8__ref, bit for bit.
 *
 * Fast:  a weight is loaded once for four outputs. Where there is no multiple of four of them, the
 *        last four begin earlier. */
#include "es_conv.h"
#include "es_scalar.h"

typedef struct {
  int32_t offsets[4]; /* of the four windows */
  int32_t tap;        /* from tap to tap */
  int32_t size;       /* taps of a filter */
  const int32_t *channel;
  es_four four;
} es_windows;

/* Four outputs of each of neighbouring channels, y to y_end, every one with a filter of its own.
 * `line` leads from behind a row of k_w taps to the next row, `step` to the next channel of x. */
#if ES_SCALAR_ASM

#define ES_TAP(I)                                        \
  "ldrb r2, [r1, #" #I "]\n sxtb r2, r2\n"               \
  "ldrsb r3, [r0, r4]\n muls r3, r2, r3\n add r8, r3\n"  \
  "ldrsb r3, [r0, r5]\n muls r3, r2, r3\n add r9, r3\n"  \
  "ldrsb r3, [r0, r6]\n muls r3, r2, r3\n add r10, r3\n" \
  "ldrsb r3, [r0, r7]\n muls r3, r2, r3\n add r11, r3\n add r0, r12\n"

/* r0 x, r1 w, r2 a weight, r3 a value, r4 to r7 the offsets, r8 to r11 sums, r12 from tap to tap,
 * lr the end of w. */
__attribute__((naked, noinline)) static void es_channels(
    const int8_t *x ES_UNUSED, const int8_t *w ES_UNUSED, es_windows *windows ES_UNUSED,
    int8_t *y ES_UNUSED, const int8_t *y_end ES_UNUSED, int32_t line ES_UNUSED,
    int32_t k_w ES_UNUSED, const int8_t *row_end ES_UNUSED, int32_t step ES_UNUSED) {
  __asm__(
      ES_ENTER
      "5:\n ldr r0, [sp]\n ldr r1, [sp, #4]\n ldr r2, [sp, #8]\n"
      "ldmia r2!, {r4, r5, r6, r7}\n"
      "ldr r3, [r2, #4]\n adds r3, r3, r1\n mov lr, r3\n"
      "ldr r3, [r2]\n mov r12, r3\n"
      "ldr r3, [r2, #8]\n ldr r3, [r3]\n mov r8, r3\n mov r9, r3\n mov r10, r3\n mov r11, r3\n"
      "ldr r2, [sp, #60]\n cmp r2, #3\n bne 2f\n"
      "1:\n" ES_TAP(0) ES_TAP(1) ES_TAP(2)
      "adds r1, #3\n ldr r3, [sp, #56]\n adds r0, r0, r3\n cmp r1, lr\n bne 1b\n b 4f\n"
      "2:\n"
      "ldr r3, [sp, #60]\n adds r3, r3, r1\n str r3, [sp, #64]\n"
      "3:\n" ES_TAP(0)
      "adds r1, #1\n ldr r3, [sp, #64]\n cmp r1, r3\n bne 3b\n"
      "ldr r3, [sp, #56]\n adds r0, r0, r3\n cmp r1, lr\n bne 2b\n"
      "4:\n"
      "str r1, [sp, #4]\n ldr r0, [sp, #8]\n ldr r1, [r0, #24]\n adds r1, #4\n adds r0, #48\n"
      "mov r4, r8\n mov r5, r9\n mov r6, r10\n mov r7, r11\n stmia r0!, {r4, r5, r6, r7}\n"
      "subs r0, #36\n" ES_STORE_FOUR(64)
      "ldr r0, [sp, #8]\n ldr r1, [sp, #64]\n str r1, [r0, #24]\n"
      "ldr r0, [sp]\n ldr r1, [sp, #68]\n adds r0, r0, r1\n str r0, [sp]\n"
      "ldr r3, [sp, #12]\n adds r3, #1\n str r3, [sp, #12]\n"
      "ldr r2, [sp, #52]\n cmp r3, r2\n beq 6f\n b 5b\n 6:\n" ES_LEAVE);
}

#else

static void es_channels(const int8_t *x, const int8_t *w, es_windows *windows, int8_t *y,
                        const int8_t *y_end, int32_t line, int32_t k_w, const int8_t *row_end,
                        int32_t step) {
  int32_t tap = windows->tap;
  for (; y < y_end; y++, x += step) {
    int32_t bias = windows->channel[0], a = bias, b = bias, c = bias, d = bias;
    const int8_t *p = x + windows->offsets[0], *q = x + windows->offsets[1];
    const int8_t *r = x + windows->offsets[2], *s = x + windows->offsets[3];
    for (const int8_t *end = w + windows->size; w < end;) {
      for (row_end = w + k_w; w < row_end; w++, p += tap, q += tap, r += tap, s += tap) {
        int32_t weight = *w;
        a += *p * weight, b += *q * weight, c += *r * weight, d += *s * weight;
      }
      p += line, q += line, r += line, s += line;
    }
    windows->four.sums[0] = a, windows->four.sums[1] = b;
    windows->four.sums[2] = c, windows->four.sums[3] = d;
    windows->channel = es_store_four(&windows->four, windows->four.sums, windows->channel + 1, y);
  }
}

#endif

/* Copy row `iy` of x with its borders. */
static void es_window_row(const es_conv_shape *s, const int8_t *x, int32_t iy, int32_t columns,
                          int8_t *row) {
  int32_t first = es_min(s->pad_left, columns), count = es_min(s->x_w, columns - first);
  if (iy < 0 || iy >= s->x_h) first = columns, count = 0;
  es_fill(row, s->x_zero, first * s->x_c);
  row += first * s->x_c;
  if (count > 0) es_copy(row, x + iy * s->x_w * s->x_c, count * s->x_c);
  row += count * s->x_c;
  es_fill(row, s->x_zero, (columns - first - count) * s->x_c);
}

/* Move n bytes at `distance` to the beginning. */
static void es_move_down(int8_t *to, int32_t distance, int32_t n) {
  if (((distance | n) & 3) == 0) {
    int32_t *words = (int32_t *)(void *)to;
    for (int32_t *from = words + (distance >> 2); n > 0; n -= 4) *words++ = *from++;
  } else {
    for (const int8_t *from = to + distance; n > 0; n--) *to++ = *from++;
  }
}

void es_depthwise_s8__scalar(const es_conv_shape *shape, const int8_t *x, const int8_t *w,
                             const int32_t *channels, int8_t *window, int8_t *y,
                             int32_t at_once) {
  const es_conv_shape *s = shape;
  int32_t x_c = s->x_c, y_c = s->y_c, y_w = s->y_w;
  int32_t columns = (y_w - 1) * s->stride_w + (s->k_w - 1) * s->dilation_w + 1;
  int32_t pitch = columns * x_c, reach = (s->k_h - 1) * s->dilation_h + 1;
  int32_t tap = s->dilation_w * x_c, line = s->dilation_h * pitch - s->k_w * tap;
  int32_t step = y_c == x_c, per_call = step ? y_c : y_c / x_c;
  es_windows windows = {{0, 0, 0, 0}, tap, s->k_h * s->k_w, channels,
                        {y_c, 2 * s->y_zero + 1, s->y_min, s->y_max, 0, {0, 0, 0, 0}}};
  for (int32_t b = 0; b < s->batches; b++, x += s->x_h * s->x_w * x_c) {
    int32_t next = -s->pad_top; /* the next row of x to copy */
    for (int32_t oy = 0, lines; oy < s->y_h; oy += lines) {
      lines = es_min(at_once, s->y_h - oy);
      int32_t top = oy * s->stride_h - s->pad_top, kept = next - top, pixels = lines * y_w;
      int32_t bottom = top + (lines - 1) * s->stride_h + reach;
      if (kept > 0 && oy > 0) {
        es_move_down(window, at_once * s->stride_h * pitch, kept * pitch);
      }
      next = es_max(next, top);
      for (; next < bottom; next++) {
        es_window_row(s, x, next, columns, window + (next - top) * pitch);
      }
      for (int32_t at = 0, n; at < pixels; at += n) {
        at = es_max(0, es_min(at, pixels - 4));
        n = es_min(4, pixels - at);
        for (int32_t i = 0, row = 0, ox = at; i < 4; i++, ox += i < n) {
          while (ox >= y_w) ox -= y_w, row += s->stride_h * pitch;
          windows.offsets[i] = row + ox * s->stride_w * x_c;
        }
        windows.four.n_bytes = n << 2;
        windows.channel = channels;
        const int8_t *filter = w, *from = window;
        int8_t *to = y + at * y_c;
        for (const int8_t *end = to + y_c; to < end; to += per_call, from++) {
          es_channels(from, filter, &windows, to, to + per_call, line, s->k_w, filter, step);
          filter += per_call * windows.size;
        }
      }
      y += pixels * y_c;
    }
  }
}
