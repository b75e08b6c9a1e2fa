/* Transposed convolutions over images: tensors are (batch, height, width, channels). */
#ifndef ES_TRANSPOSE_CONV_H
#define ES_TRANSPOSE_CONV_H

#include "es_base.h"

ES_BEGIN

typedef struct {
  int32_t batches;
  int32_t x_h, x_w, x_c;        /* input */
  int32_t y_h, y_w, y_c;        /* output */
  int32_t k_h, k_w;             /* filter */
  int32_t stride_h, stride_w;   /* rows and columns of y from one value of x to the next */
  int32_t pad_top, pad_left;    /* rows and columns of the result that are cut off before y */
  int32_t x_zero, y_zero;       /* zero points */
  int32_t y_min, y_max;         /* lowest and highest output, by the fused activation */
} es_transpose_conv_shape;

void es_transpose_conv_s8__ref(const es_transpose_conv_shape *shape, const int8_t *x,
                               const int8_t *w, const int32_t *bias, const int32_t *multiplier,
                               const int8_t *shift, int8_t *y);
void es_transpose_conv_s16__ref(const es_transpose_conv_shape *shape, const int16_t *x,
                                const int8_t *w, const int64_t *bias, const int32_t *multiplier,
                                const int8_t *shift, int16_t *y);

ES_END

#endif
