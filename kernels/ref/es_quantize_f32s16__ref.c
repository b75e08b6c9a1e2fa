/* Numbers to stored int16 values.
 *
 *   y[i] = clamp(round(x[i] / scale) + zero), halves away from zero
 *
 *   x      [in]   float (n)
 *   scale  [in]   float (1), above 0
 *   y      [out]  int16 (n); must not alias x
 *
 * Pre:   zero is int16. What is no number becomes `zero`; what is beyond the limits, infinity too,
 *        becomes the limit.
 * Exact: TensorFlow Lite Micro's QUANTIZE wherever that is defined (|x / scale| < 2^31). */
#include "es_float.h"

void es_quantize_f32s16__ref(const float *x, const float *scale, int16_t *y, int32_t n,
                             int32_t zero) {
  for (int32_t i = 0; i < n; i++) {
    int32_t stored = es_round(x[i] / *scale, INT16_MIN - zero, INT16_MAX - zero) + zero;
    y[i] = (int16_t)stored;
  }
}
