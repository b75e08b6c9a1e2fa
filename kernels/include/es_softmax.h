/* Normalisations along the last axis: SOFTMAX, LOG_SOFTMAX, L2_NORMALIZATION. */
#ifndef ES_SOFTMAX_H
#define ES_SOFTMAX_H

#include "es_base.h"

ES_BEGIN

typedef struct {
  int32_t rows;
  int32_t n;          /* values per row */
  int32_t multiplier; /* beta * x_scale in Q5.26, of es_requantize; for int16 see the kernel */
  int32_t shift;
  int32_t diff_min; /* what lies further below the row's largest value counts as 0 */
} es_softmax_shape;

typedef struct {
  int32_t rows;
  int32_t n;          /* values per row */
  int32_t multiplier; /* x_scale in Q5.26, of es_requantize */
  int32_t shift;
  int32_t diff_min;        /* what lies further below the row's largest value counts as 0 */
  int32_t back_multiplier; /* from Q5.26 to the input's scale */
  int32_t back_shift;
} es_log_softmax_shape;

typedef struct {
  int32_t rows;
  int32_t n;      /* values per row */
  int32_t x_zero; /* zero point of the input */
} es_l2norm_shape;

void es_softmax_s8__ref(const es_softmax_shape *shape, const int8_t *x, int8_t *y);
void es_softmax_s8s16__ref(const es_softmax_shape *shape, const int8_t *x, int16_t *y);
void es_softmax_s8_table__ref(const es_softmax_shape *shape, const int8_t *x, const int32_t *table,
                              int8_t *y);
void es_softmax_s8s16_table__ref(const es_softmax_shape *shape, const int8_t *x,
                                 const int32_t *table, int16_t *y);
void es_softmax_s16__ref(const es_softmax_shape *shape, const int16_t *x, const int16_t *exp_table,
                         const int16_t *reciprocal_table, int16_t *y);
void es_log_softmax_s8__ref(const es_log_softmax_shape *shape, const int8_t *x, int8_t *y);
void es_l2norm_s8__ref(const es_l2norm_shape *shape, const int8_t *x, int8_t *y);

ES_END

#endif
