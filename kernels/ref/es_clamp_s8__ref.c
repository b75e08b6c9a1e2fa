/* int8 values held between two limits.
 *
 *   y[i] = min(max(x[i], low), high)
 *
 *   x  [in]   int8 (n)
 *   y  [out]  int8 (n); may be x, or begin below it
 *
 * Pre:   low <= high, both int8.
 * Exact: TensorFlow Lite Micro's RELU and RELU6, where x and y have one scale and zero point. */
#include "es_lookup.h"

void es_clamp_s8__ref(const int8_t *x, int8_t *y, int32_t n, int32_t low, int32_t high) {
  for (int32_t i = 0; i < n; i++) y[i] = (int8_t)es_clamp(x[i], low, high);
}
