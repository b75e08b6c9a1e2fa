/* Convolutions over images: tensors are int8 (batch, height, width, channels). */
#ifndef ES_CONV_H
#define ES_CONV_H

#include "es_base.h"

ES_BEGIN

typedef struct {
  int32_t batches;
  int32_t x_h, x_w, x_c;          /* input */
  int32_t y_h, y_w, y_c;          /* output */
  int32_t k_h, k_w, k_c;          /* filter; k_c = input channels of one filter: x_c / groups */
  int32_t stride_h, stride_w;
  int32_t dilation_h, dilation_w;
  int32_t pad_top, pad_left;      /* rows and columns of x_zero before the input; as many as the
                                     output needs follow after it */
  int32_t x_zero, y_zero;         /* zero points */
  int32_t y_min, y_max;           /* lowest and highest output, by the fused activation */
} es_conv_shape;

/* The same in a third of the bytes, lowest bits first. */
typedef struct {
  int32_t x_size;   /* 16 bits each: x_h, x_w */
  int32_t y_size;   /* y_h, y_w */
  int32_t channels; /* x_c, y_c */
  int32_t filters;  /* k_c, batches */
  int32_t window;   /* 8 bits each: k_h, k_w, pad_top, pad_left */
  int32_t steps;    /* stride_h, stride_w, dilation_h, dilation_w */
  int32_t levels;   /* signed: x_zero, y_zero, y_min, y_max */
} es_conv_packed_shape;

void es_conv_s8__ref(const es_conv_shape *shape, const int8_t *x, const int8_t *w,
                     const int32_t *bias, const int32_t *multiplier, const int8_t *shift,
                     int8_t *y);
void es_depthwise_s8__ref(const es_conv_shape *shape, const int8_t *x, const int8_t *w,
                          const int32_t *bias, const int32_t *multiplier, const int8_t *shift,
                          int8_t *y);

void es_conv_s8__dsp(const es_conv_packed_shape *shape, const int8_t *x, const int8_t *w,
                     const int32_t *bias, const int32_t *scales, int8_t *columns, int8_t *y);
void es_depthwise_s8__dsp(const es_conv_packed_shape *shape, const int8_t *x, const int8_t *w,
                          const int32_t *bias, const int32_t *scales, int8_t *window, int8_t *y);

void es_conv_s8__scalar(const es_conv_shape *shape, const int8_t *x, const int32_t *stream,
                        int32_t *columns, int8_t *y);
void es_depthwise_s8__scalar(const es_conv_shape *shape, const int8_t *x, const int8_t *w,
                             const int32_t *channels, int8_t *window, int8_t *y, int32_t at_once);

void es_conv_s8__rv32(const es_conv_shape *shape, const int8_t *x, const int32_t *stream,
                      int8_t *columns, int8_t *y);

ES_END

#endif
