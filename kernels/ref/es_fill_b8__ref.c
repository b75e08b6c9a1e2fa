/* Fill with one byte.
 *
 *   y        [out]  n_bytes bytes, all equal to `byte` afterwards
 *
 * Pre:   0 <= n_bytes. */
#include "es_move.h"

void es_fill_b8__ref(void *y, int32_t byte, int32_t n_bytes) { es_fill(y, byte, n_bytes); }
