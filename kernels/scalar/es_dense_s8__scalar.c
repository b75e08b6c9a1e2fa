/* Fully connected, int8, for cores without SIMD, four outputs at a time.
 *
 *   y[r][o] = clamp(requantize(bias[o] + sum_i x[r][i] * w[o][i]) + y_zero)
 *   with the input's zero point folded into the bias
 *
 *   x         [in]   int8 (rows, n_in), aligned to 4 bytes
 *   w         [in]   int32: for every four outputs, for every 4 inputs a word of 4 weights of each;
 *                    the last n_out % 4 outputs follow one by one
 *   channels  [in]   int32: for every four outputs their 4 biases; multiplier and shift of
 *                    es_requantize_scalar of each; the last outputs as with the weights
 *   y         [out]  int8 (rows, n_out), must not alias x
 *
 * Weights stand apart from what scales change: layers with the same weights share them.
 *
 * Pre:   n_in is a multiple of 4; w_zero is 0; |bias[o]| + 128 * sum |w[o]| < 2^29; all shifts
 *        right by 1 to 22.
 * Exact: es_dense_s8__ref, bit for bit.
 * Fast:  four values and four sums stay in registers; weights come four to a load. */
#include "es_dense.h"
#include "es_scalar.h"

/* Adds the products of four outputs to sums; returns where the weights end. Its last argument is
 * what the sums start with. */
#if ES_SCALAR_ASM

#define ES_ROW(ACC)                                                      \
  "ldmia r2!, {r6}\n"                                                    \
  "sxtb r7, r6\n muls r7, r1, r7\n add " ACC ", r7\n"                    \
  "sxth r7, r6\n asrs r7, r7, #8\n muls r7, r3, r7\n add " ACC ", r7\n"  \
  "asrs r7, r6, #16\n sxtb r7, r7\n muls r7, r4, r7\n add " ACC ", r7\n" \
  "asrs r6, r6, #24\n muls r6, r5, r6\n add " ACC ", r6\n"

/* r0 x, r1 and r3 to r5 four values, r2 the weights, r6 four of them, r7 one of them; r8 to r11
 * sums, r12 the end of x. */
__attribute__((naked, noinline)) static const int32_t *es_dot_four(
    const int8_t *x ES_UNUSED, const int8_t *end ES_UNUSED, const int32_t *w ES_UNUSED,
    int32_t *sums ES_UNUSED, const int32_t *bias ES_UNUSED) {
  __asm__(
      ES_ENTER
      "mov r12, r1\n"
      "ldr r4, [sp, #52]\n ldmia r4, {r4, r5, r6, r7}\n"
      "mov r8, r4\n mov r9, r5\n mov r10, r6\n mov r11, r7\n"
      "1:\n"
      "ldmia r0!, {r6}\n"
      "sxtb r1, r6\n sxth r3, r6\n asrs r3, r3, #8\n"
      "asrs r4, r6, #16\n sxtb r4, r4\n asrs r5, r6, #24\n"
      ES_ROW("r8") ES_ROW("r9") ES_ROW("r10") ES_ROW("r11")
      "cmp r0, r12\n bne 1b\n"
      "str r2, [sp]\n ldr r3, [sp, #12]\n"
      "mov r4, r8\n mov r5, r9\n mov r6, r10\n mov r7, r11\n stmia r3!, {r4, r5, r6, r7}\n"
      ES_LEAVE);
}

#else

static const int32_t *es_dot_four(const int8_t *x, const int8_t *end, const int32_t *words,
                                  int32_t *sums, const int32_t *bias) {
  int32_t a = bias[0], b = bias[1], c = bias[2], d = bias[3];
  const int8_t *w = (const int8_t *)words; /* in this order on little-endian cores */
  for (; x < end; x += 4, w += 16) {
    int32_t p = x[0], q = x[1], r = x[2], s = x[3];
    a += p * w[0] + q * w[1] + r * w[2] + s * w[3];
    b += p * w[4] + q * w[5] + r * w[6] + s * w[7];
    c += p * w[8] + q * w[9] + r * w[10] + s * w[11];
    d += p * w[12] + q * w[13] + r * w[14] + s * w[15];
  }
  sums[0] = a, sums[1] = b, sums[2] = c, sums[3] = d;
  return (const int32_t *)(const void *)w;
}

#endif

void es_dense_s8__scalar(const es_dense_shape *shape, const int8_t *x, const int32_t *w,
                         const int32_t *channels, int8_t *y) {
  int32_t level = 2 * shape->y_zero + 1;
  for (int32_t r = 0; r < shape->rows; r++, x += shape->n_in) {
    const int8_t *end = x + shape->n_in;
    const int32_t *words = w, *at = channels;
    for (int32_t left = shape->n_out, n; left > 0; left -= n) {
      int32_t sums[4];
      n = left < 4 ? 1 : 4;
      if (n == 4) {
        words = es_dot_four(x, end, words, sums, at);
      } else {
        const int8_t *q = (const int8_t *)words;
        sums[0] = *at;
        for (const int8_t *p = x; p < end; p += 4, q += 4) {
          sums[0] += p[0] * q[0] + p[1] * q[1] + p[2] * q[2] + p[3] * q[3];
        }
        words = (const int32_t *)(const void *)q;
      }
      at += n;
      for (int32_t i = 0; i < n; i++, at += 2) {
        int32_t value = es_requantize_scalar(sums[i], at, level);
        *y++ = (int8_t)es_clamp(value, shape->y_min, shape->y_max);
      }
    }
  }
}
