/* Transposed convolution, int8 activations and weights, int32 bias.
 *
 *   y[b][oy][ox][o] = clamp(requantize(bias[o] + sum over iy, ix, ky, kx, c with
 *       iy * stride_h + ky = oy + pad_top and ix * stride_w + kx = ox + pad_left of
 *       (x[b][iy][ix][c] - x_zero) * w[o][ky][kx][c]) + y_zero)
 *
 *   Every output gathers its terms, so no memory for sums is needed.
 *
 *   x           [in]   int8 (batches, x_h, x_w, x_c)
 *   w           [in]   int8 (y_c, k_h, k_w, x_c), symmetric
 *   bias        [in]   int32 (y_c)
 *   multiplier  [in]   int32 (y_c), of es_requantize
 *   shift       [in]   int8 (y_c), of es_requantize
 *   y           [out]  int8 (batches, y_h, y_w, y_c), must not alias x
 *
 * Pre:   |bias[o]| + 255 * sum |w[o]| < 2^31 (the lowering checks it), so no sum overflows.
 * Exact: TensorFlow Lite Micro's TRANSPOSE_CONV. */
#include "es_transpose_conv.h"

void es_transpose_conv_s8__ref(const es_transpose_conv_shape *shape, const int8_t *x,
                               const int8_t *w, const int32_t *bias, const int32_t *multiplier,
                               const int8_t *shift, int8_t *y) {
  const es_transpose_conv_shape s = *shape;
  for (int32_t b = 0; b < s.batches; b++, x += s.x_h * s.x_w * s.x_c) {
    for (int32_t oy = s.pad_top; oy < s.y_h + s.pad_top; oy++) {
      for (int32_t ox = s.pad_left; ox < s.y_w + s.pad_left; ox++) {
        for (int32_t o = 0; o < s.y_c; o++) {
          int32_t sum = bias[o];
          for (int32_t ky = oy % s.stride_h; ky < s.k_h && ky <= oy; ky += s.stride_h) {
            int32_t iy = (oy - ky) / s.stride_h;
            if (iy >= s.x_h) continue;
            for (int32_t kx = ox % s.stride_w; kx < s.k_w && kx <= ox; kx += s.stride_w) {
              int32_t ix = (ox - kx) / s.stride_w;
              if (ix >= s.x_w) continue;
              const int8_t *pixel = x + (iy * s.x_w + ix) * s.x_c;
              const int8_t *weights = w + ((o * s.k_h + ky) * s.k_w + kx) * s.x_c;
              for (int32_t c = 0; c < s.x_c; c++) sum += (pixel[c] - s.x_zero) * weights[c];
            }
          }
          sum = es_wrap_add(es_requantize(sum, multiplier[o], shift[o]), s.y_zero);
          *y++ = (int8_t)es_clamp(sum, s.y_min, s.y_max);
        }
      }
    }
  }
}
