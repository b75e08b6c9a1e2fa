/* int16 values held between two limits.
 *
 *   y[i] = min(max(x[i], low), high)
 *
 *   x  [in]   int16 (n)
 *   y  [out]  int16 (n); may be x, or begin below it
 *
 * Pre:   low <= high, both int16.
 * Exact: TensorFlow Lite Micro's RELU and RELU6, where x and y have one scale and zero point. */
#include "es_lookup.h"

void es_clamp_s16__ref(const int16_t *x, int16_t *y, int32_t n, int32_t low, int32_t high) {
  for (int32_t i = 0; i < n; i++) y[i] = (int16_t)es_clamp(x[i], low, high);
}
