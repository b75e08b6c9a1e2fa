/* Products of two computed matrices. */
#ifndef ES_MATMUL_H
#define ES_MATMUL_H

#include "es_base.h"

ES_BEGIN

/* Strides are in values; 0 along a batch dimension that repeats. A transposed operand is one whose
 * two inner strides are exchanged. */
typedef struct {
  int32_t b0, b1, b2;                    /* batch dimensions of y, outermost first; else 1 */
  int32_t a0, a1, a2;                    /* from one batch to the next in a */
  int32_t w0, w1, w2;                    /* and in w */
  int32_t rows, columns, depth;          /* y is rows x columns, sums have depth terms */
  int32_t a_row, a_depth;                /* from one row, one term to the next in a */
  int32_t w_column, w_depth;             /* from one column, one term to the next in w */
  int32_t a_zero, w_zero, y_zero;        /* zero points */
  int32_t multiplier, shift;
} es_matmul_shape;

void es_matmul_s8__ref(const es_matmul_shape *shape, const int8_t *a, const int8_t *w, int8_t *y);
void es_matmul_s16__ref(const es_matmul_shape *shape, const int16_t *a, const int16_t *w,
                        int16_t *y);

ES_END

#endif
