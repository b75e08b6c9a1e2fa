/* Moving values: copies of blocks, fills, gathers, resizing. Bytes of any type of value. */
#ifndef ES_MOVE_H
#define ES_MOVE_H

#include "es_base.h"

ES_BEGIN

/* A block of up to six dimensions, outermost first, with byte strides on both sides. Unused outer
 * dimensions are 1. */
typedef struct {
  int32_t n0, n1, n2, n3, n4, n5;  /* elements of each dimension; n5 is copied as one run */
  int32_t x0, x1, x2, x3, x4;      /* bytes from one element to the next in the source */
  int32_t y0, y1, y2, y3, y4;      /* and in the destination */
  int32_t x_start;                 /* byte of the first element in the source */
  int32_t y_start;                 /* and in the destination */
} es_block_shape;

typedef struct {
  int32_t batches;     /* product of the batch dimensions */
  int32_t outer;       /* product of the dimensions before the axis, without the batch ones */
  int32_t axis_size;   /* values along the axis of x */
  int32_t inner_bytes; /* bytes behind the axis */
  int32_t n_indices;   /* indices per batch */
} es_gather_shape;

typedef struct {
  int32_t batches, x_height, x_width, y_height, y_width, channels;
  int32_t align_corners;  /* 0 or 1 */
  int32_t half_pixel;     /* 0 or 1 */
  int32_t value_bytes;    /* bytes of one value; of nearest alone */
} es_resize_shape;

void es_copy_b8__ref(const void *x, void *y, int32_t n_bytes);
void es_fill_b8__ref(void *y, int32_t byte, int32_t n_bytes);
void es_copy_b8_block__ref(const es_block_shape *shape, const void *x, void *y);
void es_gather_b8__ref(const es_gather_shape *shape, const void *x, const int32_t *indices,
                       void *y);
void es_resize_b8_nearest__ref(const es_resize_shape *shape, const int32_t *rows,
                               const int32_t *columns, const void *x, void *y);
void es_resize_s8_bilinear__ref(const es_resize_shape *shape, const int32_t *rows,
                                const int32_t *columns, const int8_t *x, int8_t *y);

ES_END

#endif
