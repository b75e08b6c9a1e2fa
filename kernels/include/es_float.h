/* Where a model has float inputs or outputs: between numbers and stored integers. */
#ifndef ES_FLOAT_H
#define ES_FLOAT_H

#include "es_base.h"

ES_BEGIN

/* The nearest integer, halves away from zero; low and high for what lies beyond, 0 for no number.
 * -2^24 <= low <= 0 <= high <= 2^24: in this range nothing is lost between float and int32. */
static inline int32_t es_round(float x, int32_t low, int32_t high) {
  int32_t whole;
  float rest;
  if (x != x) return 0;
  if (x <= (float)low) return low;
  if (x >= (float)high) return high;
  whole = (int32_t)x;
  rest = x - (float)whole;
  return rest >= 0.5f ? whole + 1 : rest <= -0.5f ? whole - 1 : whole;
}

void es_quantize_f32s8__ref(const float *x, const float *scale, int8_t *y, int32_t n, int32_t zero);
void es_quantize_f32s16__ref(const float *x, const float *scale, int16_t *y, int32_t n,
                             int32_t zero);
void es_dequantize_s8f32__ref(const int8_t *x, const float *scale, float *y, int32_t n,
                              int32_t zero);
void es_dequantize_u8f32__ref(const uint8_t *x, const float *scale, float *y, int32_t n,
                              int32_t zero);
void es_dequantize_s16f32__ref(const int16_t *x, const float *scale, float *y, int32_t n,
                               int32_t zero);

ES_END

#endif
