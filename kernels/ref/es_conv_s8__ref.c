/* Convolution, int8 activations and weights, int32 bias; strided, dilated, grouped.
 *
 *   y[b][oy][ox][o] = clamp(requantize(bias[o] + sum_ky,kx,c
 *       (x[b][oy * stride_h + ky * dilation_h - pad_top]
 *            [ox * stride_w + kx * dilation_w - pad_left][g * k_c + c] - x_zero) * w[o][ky][kx][c])
 *       + y_zero),   g = o / (y_c / groups), groups = x_c / k_c; x outside the image is x_zero
 *
 *   x           [in]   int8 (batches, x_h, x_w, x_c)
 *   w           [in]   int8 (y_c, k_h, k_w, k_c), symmetric
 *   bias        [in]   int32 (y_c)
 *   multiplier  [in]   int32 (y_c), of es_requantize
 *   shift       [in]   int8 (y_c), of es_requantize
 *   y           [out]  int8 (batches, y_h, y_w, y_c), must not alias x
 *
 * Pre:   |bias[o]| + 255 * sum |w[o]| < 2^31 (the lowering checks it), so no sum overflows.
 * Exact: TensorFlow Lite Micro's CONV_2D. */
#include "es_conv.h"

void es_conv_s8__ref(const es_conv_shape *shape, const int8_t *x, const int8_t *w,
                     const int32_t *bias, const int32_t *multiplier, const int8_t *shift,
                     int8_t *y) {
  const es_conv_shape s = *shape;
  int32_t per_group = s.y_c / (s.x_c / s.k_c);
  for (int32_t b = 0; b < s.batches; b++, x += s.x_h * s.x_w * s.x_c) {
    for (int32_t oy = 0; oy < s.y_h; oy++) {
      for (int32_t ox = 0; ox < s.y_w; ox++) {
        const int8_t *weights = w;
        for (int32_t o = 0; o < s.y_c; o++) {
          const int8_t *group = x + o / per_group * s.k_c;
          int32_t sum = bias[o];
          for (int32_t ky = 0; ky < s.k_h; ky++) {
            int32_t iy = oy * s.stride_h + ky * s.dilation_h - s.pad_top;
            for (int32_t kx = 0; kx < s.k_w; kx++, weights += s.k_c) {
              int32_t ix = ox * s.stride_w + kx * s.dilation_w - s.pad_left;
              if (iy < 0 || iy >= s.x_h || ix < 0 || ix >= s.x_w) continue;
              const int8_t *pixel = group + (iy * s.x_w + ix) * s.x_c;
              for (int32_t c = 0; c < s.k_c; c++) sum += (pixel[c] - s.x_zero) * weights[c];
            }
          }
          sum = es_requantize(sum, multiplier[o], shift[o]) + s.y_zero;
          *y++ = (int8_t)es_clamp(sum, s.y_min, s.y_max);
        }
      }
    }
  }
}
