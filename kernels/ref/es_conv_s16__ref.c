/* Convolution, int16 activations, int8 weights, int64 bias; strided, dilated, grouped.
 *
 *   y[b][oy][ox][o] = clamp(requantize_wide(bias[o] + sum_ky,kx,c
 *       x[b][oy * stride_h + ky * dilation_h - pad_top]
 *           [ox * stride_w + kx * dilation_w - pad_left][g * k_c + c] * w[o][ky][kx][c])),
 *       g = o / (y_c / groups), groups = x_c / k_c; x outside the image is 0
 *
 *   x           [in]   int16 (batches, x_h, x_w, x_c), zero point 0
 *   w           [in]   int8 (y_c, k_h, k_w, k_c), symmetric
 *   bias        [in]   int64 (y_c)
 *   multiplier  [in]   int32 (y_c), of es_requantize_wide
 *   shift       [in]   int8 (y_c), of es_requantize_wide: at most 7
 *   y           [out]  int16 (batches, y_h, y_w, y_c), zero point 0, must not alias x
 *
 * Pre:   |bias[o]| + 2^15 * sum |w[o]| < 2^47 (the lowering checks it).
 * Exact: TensorFlow Lite Micro's CONV_2D with a bias of int64. */
#include "es_int16.h"

void es_conv_s16__ref(const es_conv_shape *shape, const int16_t *x, const int8_t *w,
                      const int64_t *bias, const int32_t *multiplier, const int8_t *shift,
                      int16_t *y) {
  const es_conv_shape s = *shape;
  int32_t per_group = s.y_c / (s.x_c / s.k_c);
  for (int32_t b = 0; b < s.batches; b++, x += s.x_h * s.x_w * s.x_c) {
    for (int32_t oy = 0; oy < s.y_h; oy++) {
      for (int32_t ox = 0; ox < s.y_w; ox++) {
        const int8_t *weights = w;
        for (int32_t o = 0; o < s.y_c; o++) {
          int64_t sum = bias[o];
          for (int32_t ky = 0; ky < s.k_h; ky++) {
            int32_t iy = oy * s.stride_h + ky * s.dilation_h - s.pad_top;
            for (int32_t kx = 0; kx < s.k_w; kx++, weights += s.k_c) {
              int32_t ix = ox * s.stride_w + kx * s.dilation_w - s.pad_left;
              if (iy < 0 || iy >= s.x_h || ix < 0 || ix >= s.x_w) continue;
              const int16_t *pixel = x + (iy * s.x_w + ix) * s.x_c + o / per_group * s.k_c;
              for (int32_t c = 0; c < s.k_c; c++) sum += pixel[c] * weights[c];
            }
          }
          int32_t value = es_requantize_wide(sum, multiplier[o], shift[o]);
          *y++ = (int16_t)es_clamp(value, s.y_min, s.y_max);
        }
      }
    }
  }
}
