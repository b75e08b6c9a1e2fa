/* Numbers to stored int8 values.
 *
 *   y[i] = clamp(round(x[i] / scale) + zero), halves away from zero
 *
 *   x      [in]   float (n)
 *   scale  [in]   float (1), above 0
 *   y      [out]  int8 (n); may be x, or begin below it
 *
 * Pre:   zero is int8. What is no number becomes `zero`; what is beyond the limits, infinity too,
 *        becomes the limit.
 * Exact: TensorFlow Lite Micro's QUANTIZE wherever that is defined (|x / scale| < 2^31). */
#include "es_float.h"

void es_quantize_f32s8__ref(const float *x, const float *scale, int8_t *y, int32_t n,
                            int32_t zero) {
  for (int32_t i = 0; i < n; i++) {
    int32_t stored = es_round(x[i] / *scale, INT8_MIN - zero, INT8_MAX - zero) + zero;
    y[i] = (int8_t)stored;
  }
}
