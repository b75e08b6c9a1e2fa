/* Depthwise convolution, int16 activations, int8 weights, int64 bias; strided, dilated, and with
 * several filters per input channel (m = y_c / x_c).
 *
 *   y[b][oy][ox][o] = clamp(requantize_wide(bias[o] + sum_ky,kx
 *       x[b][oy * stride_h + ky * dilation_h - pad_top]
 *           [ox * stride_w + kx * dilation_w - pad_left][o / m] * w[ky][kx][o])),
 *       x outside the image is 0
 *
 *   x           [in]   int16 (batches, x_h, x_w, x_c), zero point 0
 *   w           [in]   int8 (k_h, k_w, y_c), symmetric
 *   bias        [in]   int64 (y_c)
 *   multiplier  [in]   int32 (y_c), of es_requantize_wide
 *   shift       [in]   int8 (y_c), of es_requantize_wide: at most 7
 *   y           [out]  int16 (batches, y_h, y_w, y_c), zero point 0, must not alias x
 *
 * Pre:   |bias[o]| + 2^15 * sum |w[..][o]| < 2^47 (the lowering checks it).
 * Exact: TensorFlow Lite Micro's DEPTHWISE_CONV_2D. */
#include "es_int16.h"

void es_depthwise_s16__ref(const es_conv_shape *shape, const int16_t *x, const int8_t *w,
                           const int64_t *bias, const int32_t *multiplier, const int8_t *shift,
                           int16_t *y) {
  const es_conv_shape s = *shape;
  int32_t per_channel = s.y_c / s.x_c;
  for (int32_t b = 0; b < s.batches; b++, x += s.x_h * s.x_w * s.x_c) {
    for (int32_t oy = 0; oy < s.y_h; oy++) {
      for (int32_t ox = 0; ox < s.y_w; ox++) {
        for (int32_t o = 0; o < s.y_c; o++) {
          int64_t sum = bias[o];
          for (int32_t ky = 0; ky < s.k_h; ky++) {
            int32_t iy = oy * s.stride_h + ky * s.dilation_h - s.pad_top;
            for (int32_t kx = 0; kx < s.k_w; kx++) {
              int32_t ix = ox * s.stride_w + kx * s.dilation_w - s.pad_left;
              if (iy < 0 || iy >= s.x_h || ix < 0 || ix >= s.x_w) continue;
              int32_t value = x[(iy * s.x_w + ix) * s.x_c + o / per_channel];
              sum += value * w[(ky * s.k_w + kx) * s.y_c + o];
            }
          }
          int32_t value = es_requantize_wide(sum, multiplier[o], shift[o]);
          *y++ = (int16_t)es_clamp(value, s.y_min, s.y_max);
        }
      }
    }
  }
}
