/* Matrix products: fully connected layers. */
#ifndef ES_DENSE_H
#define ES_DENSE_H

#include "es_base.h"

ES_BEGIN

typedef struct {
  int32_t rows;       /* samples: batch and all other leading dimensions */
  int32_t n_in;       /* values per sample */
  int32_t n_out;      /* output channels */
  int32_t x_zero;     /* zero point of the input */
  int32_t w_zero;     /* zero point of the weights; 0 but for old per-tensor files */
  int32_t y_zero;     /* zero point of the output */
  int32_t y_min;      /* lowest and */
  int32_t y_max;      /* highest output, by the fused activation */
} es_dense_shape;

void es_dense_s8__ref(const es_dense_shape *shape, const int8_t *x, const int8_t *w,
                      const int32_t *bias, const int32_t *multiplier, const int8_t *shift,
                      int8_t *y);
void es_dense_s8__dsp(const es_dense_shape *shape, const int8_t *x, const int8_t *w,
                      const int32_t *bias, const int32_t *multiplier, const int8_t *shift,
                      int8_t *y);
void es_dense_s8__scalar(const es_dense_shape *shape, const int8_t *x, const int32_t *w,
                         const int32_t *channels, int8_t *y);

ES_END

#endif
