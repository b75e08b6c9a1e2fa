/* Many values become one: pools, sums, means, the place of the largest. */
#ifndef ES_REDUCE_H
#define ES_REDUCE_H

#include "es_base.h"

ES_BEGIN

typedef struct {
  int32_t batch;
  int32_t in_height, in_width;
  int32_t channels;
  int32_t out_height, out_width;
  int32_t window_height, window_width;
  int32_t stride_height, stride_width;
  int32_t pad_top, pad_left;
  int32_t y_min; /* lowest and */
  int32_t y_max; /* highest output, by the fused activation */
} es_pool_shape;

/* The part of a pool's window that lies inside the input. */
typedef struct {
  int32_t top, bottom, left, right; /* rows top to bottom - 1, columns left to right - 1 */
} es_window;

static inline es_window es_pool_window(const es_pool_shape *shape, int32_t row, int32_t column) {
  es_window window;
  int32_t y = row * shape->stride_height - shape->pad_top;
  int32_t x = column * shape->stride_width - shape->pad_left;
  window.top = es_max(y, 0);
  window.bottom = es_min(y + shape->window_height, shape->in_height);
  window.left = es_max(x, 0);
  window.right = es_min(x + shape->window_width, shape->in_width);
  return window;
}

/* Adjacent dimensions that are all kept, or all summed over, are one here. */
typedef struct {
  int32_t k0, k1, k2;    /* sizes of the dimensions that stay, outermost first; 1 where unused */
  int32_t ks0, ks1, ks2; /* values between neighbours along them */
  int32_t r0, r1, r2;    /* sizes of the dimensions that are summed over */
  int32_t rs0, rs1, rs2; /* values between neighbours along them */
  int32_t bias;          /* -(zero point of the input) * number of summands, modulo 2^32 */
  int32_t multiplier;    /* x_scale / y_scale, for a mean over the number of summands */
  int32_t shift;
  int32_t y_zero;
} es_sum_shape;

typedef struct {
  int32_t outer; /* values before the axis */
  int32_t n;     /* values along it */
  int32_t inner; /* values behind it */
} es_arg_shape;

void es_avgpool_s8__ref(const es_pool_shape *shape, const int8_t *x, int8_t *y);
void es_avgpool_s8__scalar(const es_pool_shape *shape, const int8_t *x, int8_t *y);
void es_avgpool_s8__dsp(const es_pool_shape *shape, const int8_t *x, int8_t *y);
void es_avgpool_s16__ref(const es_pool_shape *shape, const int16_t *x, int16_t *y);
void es_maxpool_s8__ref(const es_pool_shape *shape, const int8_t *x, int8_t *y);
void es_maxpool_s8__dsp(const es_pool_shape *shape, const int8_t *x, int8_t *y);
void es_maxpool_s16__ref(const es_pool_shape *shape, const int16_t *x, int16_t *y);

void es_sum_s8__ref(const es_sum_shape *shape, const int8_t *x, int8_t *y);
void es_sum_s16__ref(const es_sum_shape *shape, const int16_t *x, int16_t *y);

void es_argmax_s8s32__ref(const es_arg_shape *shape, const int8_t *x, int32_t *y);
void es_argmax_s8s64__ref(const es_arg_shape *shape, const int8_t *x, int64_t *y);

ES_END

#endif
