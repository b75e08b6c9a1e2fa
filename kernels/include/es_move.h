/* Moving values: copies, padding, slices, transposes, concatenation. */
#ifndef ES_MOVE_H
#define ES_MOVE_H

#include "es_base.h"

ES_BEGIN

void es_copy_b8__ref(const void *x, void *y, int32_t n_bytes);

ES_END

#endif
