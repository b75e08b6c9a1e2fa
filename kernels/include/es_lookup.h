/* One input, one output, value by value: tables, clamps, changes of scale and type. */
#ifndef ES_LOOKUP_H
#define ES_LOOKUP_H

#include "es_base.h"

ES_BEGIN

typedef struct {
  int32_t n;          /* values */
  int32_t x_zero;     /* zero point of the input */
  int32_t y_zero;     /* of the output */
  int32_t multiplier; /* x_scale / y_scale, of es_requantize */
  int32_t shift;
} es_rescale_shape;

static inline int32_t es_rescale_one(const es_rescale_shape *shape, int32_t x) {
  x = es_requantize(es_wrap_add(x, -shape->x_zero), shape->multiplier, shape->shift);
  return es_wrap_add(x, shape->y_zero);
}

typedef struct {
  int32_t n;          /* values */
  int32_t multiplier; /* of values >= 0, of es_requantize */
  int32_t shift;
  int32_t neg_multiplier; /* of values < 0 */
  int32_t neg_shift;
  int32_t neg_sign; /* 1, or -1 to turn the sign of what becomes of values < 0 */
} es_leaky_shape;

typedef struct {
  int32_t n;          /* values */
  int32_t multiplier; /* to 1 / (3 * 4096), 0 to 2^15; a power of two times 3 where shift is 0 */
  int32_t shift;      /* to the right, rounding */
} es_sigmoid_shape;

void es_lookup_s8__ref(const int8_t *x, const int8_t *table, int8_t *y, int32_t n);
void es_clamp_s8__ref(const int8_t *x, int8_t *y, int32_t n, int32_t low, int32_t high);
void es_clamp_s16__ref(const int16_t *x, int16_t *y, int32_t n, int32_t low, int32_t high);

void es_rescale_s8__ref(const es_rescale_shape *shape, const int8_t *x, int8_t *y);
void es_rescale_s8u8__ref(const es_rescale_shape *shape, const int8_t *x, uint8_t *y);
void es_rescale_s8s16__ref(const es_rescale_shape *shape, const int8_t *x, int16_t *y);
void es_rescale_s8s32__ref(const es_rescale_shape *shape, const int8_t *x, int32_t *y);
void es_rescale_u8s8__ref(const es_rescale_shape *shape, const uint8_t *x, int8_t *y);
void es_rescale_s16s8__ref(const es_rescale_shape *shape, const int16_t *x, int8_t *y);
void es_rescale_s16__ref(const es_rescale_shape *shape, const int16_t *x, int16_t *y);
void es_rescale_s16s32__ref(const es_rescale_shape *shape, const int16_t *x, int32_t *y);
void es_rescale_s32s8__ref(const es_rescale_shape *shape, const int32_t *x, int8_t *y);
void es_rescale_s32s16__ref(const es_rescale_shape *shape, const int32_t *x, int16_t *y);

void es_leaky_s16__ref(const es_leaky_shape *shape, const int16_t *x, int16_t *y);
void es_abs_s16__ref(const es_rescale_shape *shape, const int16_t *x, int16_t *y);
void es_logistic_s16__ref(const es_sigmoid_shape *shape, const uint16_t *table, const int16_t *x,
                          int16_t *y);
void es_tanh_s16__ref(const es_sigmoid_shape *shape, const uint16_t *table, const int16_t *x,
                      int16_t *y);

ES_END

#endif
