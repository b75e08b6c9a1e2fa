/* Arithmetic for cores without SIMD: two products to a multiplication, requantization without a
 * 64-bit product where the core has none. */
#ifndef ES_SCALAR_H
#define ES_SCALAR_H

#include "es_base.h"

/* round(a * b / 2^31), ties upwards, by products of 16-bit halves; |a| < 2^29, 0 <= b < 2^31.
 *
 * a = ah * 2^16 + al with al in [-2^15, 2^15), b = bh * 2^16 + bl with bl in [0, 2^16):
 * |al * bl| <= 2^31 - 2^15, |al * bh| <= 2^30, |ah * bl| < 2^29 + 2^16, so no sum overflows. What
 * al * bl / 2^16 loses by rounding down lies below the lowest bit that the rest has. */
static inline int32_t es_doubling_high_mul_halves(int32_t a, int32_t b) {
  int32_t al = (int16_t)a, ah = (a - al) >> 16, bl = b & 0xFFFF, bh = b >> 16;
  int32_t middle = ((al * bl) >> 16) + al * bh + ah * bl, top = ah * bh;
  return top + top + ((middle + (1 << 14)) >> 15);
}

/* What es_requantize gives, plus the output's zero point. `scale` is the multiplier, in [2^30,
 * 2^31) or 0, and n, a shift to the right by 1 to 22; `level` is 2 * y_zero + 1. |sum| < 2^29.
 *
 * level * 2^(n - 1) is the zero point and a half. Adding sum >> 31 sends ties away from zero; where
 * sum is negative and the product rounds to 0, it stays 0. */
static inline int32_t es_requantize_scalar(int32_t sum, const int32_t *scale, int32_t level) {
#if defined(__thumb__) && !defined(__thumb2__)
  int32_t high = es_doubling_high_mul_halves(sum, scale[0]);
#else
  int64_t product = (int64_t)(sum + sum) * scale[0];
  int32_t high = (int32_t)(product >> 32) + (int32_t)((uint32_t)product >> 31);
#endif
  return (high + level * (1 << (scale[1] - 1)) + (sum >> 31)) >> scale[1];
}

/* Four sums of one output channel, and where their outputs go. */
typedef struct {
  int32_t pitch; /* from output to output */
  int32_t level; /* 2 * zero point + 1 */
  int32_t y_min, y_max;
  int32_t n_bytes; /* of the sums that are wanted */
  int32_t sums[4];
} es_four;

#if defined(__thumb__) && defined(__GNUC__)
#define ES_SCALAR_ASM 1

/* Requantizes and stores, as es_store_four; the function's frame as ES_ENTER leaves it. r0: the
 * es_four, r1: the scale, at [sp, #12]: y. Leaves the end of the scale at [sp, #SLOT].
 * r1 and r2 are the halves of the multiplier, r3 the shift, r4 a sum, r5 and r7 its halves; r8 y,
 * r9 the pitch, r10 the rounding constant, r11 and r12 the limits, lr the sums' end. */
#define ES_STORE_FOUR(SLOT)                                                               \
  "ldmia r1!, {r2, r3}\n str r1, [sp, #" #SLOT "]\n uxth r1, r2\n lsrs r2, r2, #16\n"     \
  "ldmia r0!, {r4, r5}\n mov r9, r4\n lsls r5, r3\n asrs r5, r5, #1\n mov r10, r5\n"      \
  "ldmia r0!, {r5, r6, r7}\n mov r11, r5\n mov r12, r6\n"                                 \
  "adds r7, r7, r0\n mov lr, r7\n ldr r4, [sp, #12]\n mov r8, r4\n"                       \
  "7:\n ldmia r0!, {r4}\n sxth r5, r4\n subs r7, r4, r5\n asrs r7, r7, #16\n"             \
  "mov r6, r5\n muls r6, r1, r6\n asrs r6, r6, #16\n muls r5, r2, r5\n adds r6, r6, r5\n" \
  "mov r5, r7\n muls r5, r1, r5\n adds r6, r6, r5\n muls r7, r2, r7\n"                    \
  "asrs r6, r6, #15\n adcs r6, r7\n adds r6, r6, r7\n"                                    \
  "asrs r4, r4, #31\n adds r6, r6, r4\n add r6, r10\n asrs r6, r3\n"                      \
  "cmp r6, r11\n bge 8f\n mov r6, r11\n 8:\n cmp r6, r12\n ble 9f\n mov r6, r12\n 9:\n"   \
  "mov r5, r8\n strb r6, [r5]\n add r8, r9\n cmp r0, lr\n bne 7b\n"

/* Saves every register; the arguments are at [sp] to [sp, #12], a fifth at [sp, #52], and so on. */
#define ES_ENTER                                  \
  ".syntax unified\n push {r4, r5, r6, r7, lr}\n" \
  "mov r4, r8\n mov r5, r9\n mov r6, r10\n mov r7, r11\n push {r0, r1, r2, r3, r4, r5, r6, r7}\n"
/* Returns what is at [sp]. */
#define ES_LEAVE                           \
  "pop {r0, r1, r2, r3, r4, r5, r6, r7}\n" \
  "mov r8, r4\n mov r9, r5\n mov r10, r6\n mov r11, r7\n pop {r4, r5, r6, r7, pc}\n"

#else
#define ES_SCALAR_ASM 0
#endif

/* Requantizes sums and stores outputs; returns the end of the scale. */
static inline const int32_t *es_store_four(const es_four *four, const int32_t *sums,
                                           const int32_t *scale, int8_t *y) {
  const int32_t kept[2] = {scale[0], scale[1]}; /* y may be anywhere, as far as a compiler knows */
  const int32_t pitch = four->pitch, level = four->level, low = four->y_min, high = four->y_max;
  const int32_t *end = sums + (four->n_bytes >> 2);
  for (; sums < end; sums++, y += pitch) {
    int32_t value = es_max(es_requantize_scalar(*sums, kept, level), low);
    *y = (int8_t)es_min(value, high);
  }
  return scale + 2;
}

#endif
