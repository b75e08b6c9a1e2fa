/* Copy of bytes, of any type of value.
 *
 *   x        [in]   n_bytes bytes
 *   y        [out]  n_bytes bytes, must not alias x
 *
 * Pre:   0 <= n_bytes. */
#include "es_move.h"

void es_copy_b8__ref(const void *x, void *y, int32_t n_bytes) { es_copy(y, x, n_bytes); }
