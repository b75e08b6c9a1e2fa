/* Gather of slices along one axis, of any type of value.
 *
 *   y[b][o][i] = x[b][o][indices[b][i]]     each of inner_bytes bytes
 *
 *   x        [in]   bytes (batches, outer, axis_size, inner_bytes)
 *   indices  [in]   int32 (batches, n_indices); one outside [0, axis_size) takes the nearest slice
 *   y        [out]  bytes (batches, outer, n_indices, inner_bytes), must not alias x
 *
 * Exact: TensorFlow Lite Micro's GATHER for indices in range. */
#include "es_move.h"

void es_gather_b8__ref(const es_gather_shape *shape, const void *x, const int32_t *indices,
                       void *y) {
  const uint8_t *source = (const uint8_t *)x;
  uint8_t *sink = (uint8_t *)y;
  for (int32_t b = 0; b < shape->batches; b++) {
    for (int32_t o = 0; o < shape->outer; o++) {
      for (int32_t i = 0; i < shape->n_indices; i++) {
        int32_t index = es_clamp(indices[b * shape->n_indices + i], 0, shape->axis_size - 1);
        es_copy(sink, source + index * shape->inner_bytes, shape->inner_bytes);
        sink += shape->inner_bytes;
      }
      source += shape->axis_size * shape->inner_bytes;
    }
  }
}
