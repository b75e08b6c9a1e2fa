/* Stored uint8 values to numbers.
 *
 *   y[i] = scale * (x[i] - zero)
 *
 *   x      [in]   uint8 (n)
 *   scale  [in]   float (1)
 *   y      [out]  float (n); may begin below x as far as every value is written below what is
 *                 still to be read: values go in order
 *
 * Pre:   |x - zero| < 2^24, so that it is exact as a float and the product rounds once.
 * Exact: TensorFlow Lite Micro's DEQUANTIZE, which multiplies in double and then rounds. */
#include "es_float.h"

void es_dequantize_u8f32__ref(const uint8_t *x, const float *scale, float *y, int32_t n,
                              int32_t zero) {
  for (int32_t i = 0; i < n; i++) y[i] = *scale * (float)(x[i] - zero);
}
