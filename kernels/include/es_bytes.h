/* Four int8 values to a register. SSUB8 and SEL are of Armv7E-M and Armv8-M with DSP extension;
 * elsewhere portable functions stand in, so that a host runs the same kernels. */
#ifndef ES_BYTES_H
#define ES_BYTES_H

#include "es_base.h"

#if defined(__ARM_FEATURE_SIMD32) && defined(__GNUC__)

/* The larger, and the smaller, of each pair of bytes. One block each: SEL reads the flags that
 * SSUB8 leaves. */
static inline int32_t es_max4(int32_t a, int32_t b) {
  int32_t y;
  __asm__("ssub8 %0, %1, %2\n\tsel %0, %1, %2" : "=&r"(y) : "r"(a), "r"(b) : "cc");
  return y;
}
static inline int32_t es_min4(int32_t a, int32_t b) {
  int32_t y;
  __asm__("ssub8 %0, %1, %2\n\tsel %0, %2, %1" : "=&r"(y) : "r"(a), "r"(b) : "cc");
  return y;
}

#else

static inline int32_t es_max4(int32_t a, int32_t b) {
  int8_t x[4], y[4];
  es_copy(x, &a, 4);
  es_copy(y, &b, 4);
  for (int32_t i = 0; i < 4; i++) y[i] = (int8_t)es_max(x[i], y[i]);
  es_copy(&b, y, 4);
  return b;
}
static inline int32_t es_min4(int32_t a, int32_t b) {
  int8_t x[4], y[4];
  es_copy(x, &a, 4);
  es_copy(y, &b, 4);
  for (int32_t i = 0; i < 4; i++) y[i] = (int8_t)es_min(x[i], y[i]);
  es_copy(&b, y, 4);
  return b;
}

#endif

/* Four bytes at a multiple of four: one load on every core. */
static inline int32_t es_load4_aligned(const int8_t *from) {
  int32_t word;
  es_copy(&word, __builtin_assume_aligned(from, 4), 4);
  return word;
}

/* One int8 value four times. */
static inline int32_t es_repeat4(int32_t value) {
  return (int32_t)(((uint32_t)value & 0xFF) * UINT32_C(0x01010101));
}

#endif
