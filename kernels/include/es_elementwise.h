/* Two inputs, one output, element by element, with broadcasting. */
#ifndef ES_ELEMENTWISE_H
#define ES_ELEMENTWISE_H

#include "es_base.h"

ES_BEGIN

/* How two inputs of different shapes meet: adjacent dimensions that repeat alike are one here. */
typedef struct {
  int32_t d0, d1, d2, d3, d4; /* sizes of the output, outermost first; 1 where unused */
  int32_t a0, a1, a2, a3, a4; /* values between neighbours in the first input, 0: repeated */
  int32_t b0, b1, b2, b3, b4; /* and in the second */
} es_broadcast_shape;

/* Where one row (d4 values) of the output finds its inputs. */
typedef struct {
  int32_t a, b;
} es_broadcast_row;

static inline int32_t es_broadcast_rows(const es_broadcast_shape *shape) {
  return shape->d0 * shape->d1 * shape->d2 * shape->d3;
}

static inline es_broadcast_row es_broadcast_at(const es_broadcast_shape *shape, int32_t row) {
  es_broadcast_row at;
  int32_t i3 = row % shape->d3, rest = row / shape->d3;
  int32_t i2 = rest % shape->d2, i1, i0;
  rest /= shape->d2;
  i1 = rest % shape->d1;
  i0 = rest / shape->d1;
  at.a = i0 * shape->a0 + i1 * shape->a1 + i2 * shape->a2 + i3 * shape->a3;
  at.b = i0 * shape->b0 + i1 * shape->b1 + i2 * shape->b2 + i3 * shape->b3;
  return at;
}

/* A sum or difference of two values on three scales. */
typedef struct {
  int32_t n;            /* values of the output */
  int32_t a_zero;       /* zero point of the first input */
  int32_t b_zero;       /* of the second */
  int32_t y_zero;       /* of the output */
  int32_t a_multiplier; /* to the common scale, of es_requantize */
  int32_t a_shift;
  int32_t b_multiplier;
  int32_t b_shift;
  int32_t b_sign;       /* 1 for a sum, -1 for a difference */
  int32_t y_multiplier; /* from the common scale to that of the output */
  int32_t y_shift;
  int32_t y_min; /* lowest and */
  int32_t y_max; /* highest output, by the fused activation */
} es_add_shape;

/* One sum; the inputs get `left` bits more before they are rounded. */
static inline int32_t es_add_one(const es_add_shape *shape, int32_t left, int32_t a, int32_t b) {
  int32_t sum;
  a = es_requantize(es_wrap_shl(a - shape->a_zero, left), shape->a_multiplier, shape->a_shift);
  b = es_requantize(es_wrap_shl(b - shape->b_zero, left), shape->b_multiplier, shape->b_shift);
  sum = es_requantize(a + shape->b_sign * b, shape->y_multiplier, shape->y_shift) + shape->y_zero;
  return es_clamp(sum, shape->y_min, shape->y_max);
}

typedef struct {
  int32_t n;      /* values of the output */
  int32_t factor; /* of the input with the larger scale, to the common scale: 2^19, or -2^19 */
  int32_t y_multiplier; /* from the common scale to that of the output, of es_requantize */
  int32_t y_constant;   /* 2^(y_right - 1) + y_zero * 2^y_right */
  int32_t y_right;      /* shift to the right, 1 to 22 */
  int32_t y_min;        /* lowest and */
  int32_t y_max;        /* highest output, by the fused activation */
} es_add_table_shape;

typedef struct {
  int32_t n;          /* values of the output */
  int32_t a_zero;     /* zero point of the first input */
  int32_t b_zero;     /* of the second */
  int32_t y_zero;     /* of the output */
  int32_t multiplier; /* a_scale * b_scale / y_scale, of es_requantize */
  int32_t shift;
  int32_t y_min; /* lowest and */
  int32_t y_max; /* highest output, by the fused activation */
} es_mul_shape;

static inline int32_t es_mul_one(const es_mul_shape *shape, int32_t a, int32_t b) {
  int32_t product = (a - shape->a_zero) * (b - shape->b_zero);
  product = es_wrap_add(es_requantize(product, shape->multiplier, shape->shift), shape->y_zero);
  return es_clamp(product, shape->y_min, shape->y_max);
}

typedef struct {
  int32_t x_zero;     /* zero point of the input */
  int32_t alpha_zero; /* of the slopes */
  int32_t y_zero;     /* of the output */
  int32_t multiplier; /* x_scale / y_scale, where x >= 0 */
  int32_t shift;
  int32_t neg_multiplier; /* x_scale * alpha_scale / y_scale, where x < 0 */
  int32_t neg_shift;
  int32_t y_min; /* limits of the output's type */
  int32_t y_max;
} es_prelu_shape;

static inline int32_t es_prelu_one(const es_prelu_shape *shape, int32_t x, int32_t alpha) {
  int32_t y;
  x -= shape->x_zero;
  if (x >= 0) {
    y = es_requantize(x, shape->multiplier, shape->shift);
  } else {
    y = es_requantize(x * (alpha - shape->alpha_zero), shape->neg_multiplier, shape->neg_shift);
  }
  return es_clamp(es_wrap_add(y, shape->y_zero), shape->y_min, shape->y_max);
}

void es_add_s8__ref(const es_add_shape *shape, const int8_t *a, const int8_t *b, int8_t *y);
void es_add_s8__dsp(const es_add_shape *shape, const int8_t *a, const int8_t *b, int8_t *y);
void es_add_s8_table__scalar(const es_add_table_shape *shape, const int8_t *a, const int8_t *b,
                             const int32_t *table, int8_t *y);
void es_add_s8_broadcast__ref(const es_add_shape *shape, const es_broadcast_shape *broadcast,
                              const int8_t *a, const int8_t *b, int8_t *y);
void es_add_s16__ref(const es_add_shape *shape, const int16_t *a, const int16_t *b, int16_t *y);
void es_add_s16_broadcast__ref(const es_add_shape *shape, const es_broadcast_shape *broadcast,
                               const int16_t *a, const int16_t *b, int16_t *y);

void es_mul_s8__ref(const es_mul_shape *shape, const int8_t *a, const int8_t *b, int8_t *y);
void es_mul_s8_broadcast__ref(const es_mul_shape *shape, const es_broadcast_shape *broadcast,
                              const int8_t *a, const int8_t *b, int8_t *y);
void es_mul_s16__ref(const es_mul_shape *shape, const int16_t *a, const int16_t *b, int16_t *y);
void es_mul_s16_broadcast__ref(const es_mul_shape *shape, const es_broadcast_shape *broadcast,
                               const int16_t *a, const int16_t *b, int16_t *y);

void es_maximum_s8__ref(const es_broadcast_shape *broadcast, const int8_t *a, const int8_t *b,
                        int8_t *y);
void es_maximum_s16__ref(const es_broadcast_shape *broadcast, const int16_t *a, const int16_t *b,
                         int16_t *y);
void es_minimum_s8__ref(const es_broadcast_shape *broadcast, const int8_t *a, const int8_t *b,
                        int8_t *y);
void es_minimum_s16__ref(const es_broadcast_shape *broadcast, const int16_t *a, const int16_t *b,
                         int16_t *y);

void es_prelu_s8__ref(const es_prelu_shape *shape, const es_broadcast_shape *broadcast,
                      const int8_t *x, const int8_t *alpha, int8_t *y);
void es_prelu_s16__ref(const es_prelu_shape *shape, const es_broadcast_shape *broadcast,
                       const int16_t *x, const int8_t *alpha, int16_t *y);

ES_END

#endif
