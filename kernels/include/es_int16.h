/* Layers with int16 activations (zero point 0), int8 weights and int64 sums. */
#ifndef ES_INT16_H
#define ES_INT16_H

#include "es_conv.h"
#include "es_dense.h"
#include "es_wide.h"

ES_BEGIN

void es_conv_s16__ref(const es_conv_shape *shape, const int16_t *x, const int8_t *w,
                      const int64_t *bias, const int32_t *multiplier, const int8_t *shift,
                      int16_t *y);
void es_depthwise_s16__ref(const es_conv_shape *shape, const int16_t *x, const int8_t *w,
                           const int64_t *bias, const int32_t *multiplier, const int8_t *shift,
                           int16_t *y);
void es_dense_s16__ref(const es_dense_shape *shape, const int16_t *x, const int8_t *w,
                       const int64_t *bias, const int32_t *multiplier, const int8_t *shift,
                       int16_t *y);

ES_END

#endif
