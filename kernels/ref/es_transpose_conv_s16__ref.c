/* Transposed convolution, int16 activations, int8 weights, int64 bias.
 *
 *   y[b][oy][ox][o] = clamp(requantize_wide(bias[o] + sum over iy, ix, ky, kx, c with
 *       iy * stride_h + ky = oy + pad_top and ix * stride_w + kx = ox + pad_left of
 *       x[b][iy][ix][c] * w[o][ky][kx][c]))
 *
 *   x           [in]   int16 (batches, x_h, x_w, x_c), zero point 0
 *   w           [in]   int8 (y_c, k_h, k_w, x_c), symmetric
 *   bias        [in]   int64 (y_c)
 *   multiplier  [in]   int32 (y_c), of es_requantize_wide
 *   shift       [in]   int8 (y_c), of es_requantize_wide: at most 7
 *   y           [out]  int16 (batches, y_h, y_w, y_c), zero point 0, must not alias x
 *
 * Pre:   |bias[o]| + 2^15 * sum |w[o]| < 2^47 (the lowering checks it).
 * Exact: TensorFlow Lite Micro's TRANSPOSE_CONV. */
#include "es_transpose_conv.h"
#include "es_wide.h"

void es_transpose_conv_s16__ref(const es_transpose_conv_shape *shape, const int16_t *x,
                                const int8_t *w, const int64_t *bias, const int32_t *multiplier,
                                const int8_t *shift, int16_t *y) {
  const es_transpose_conv_shape s = *shape;
  for (int32_t b = 0; b < s.batches; b++, x += s.x_h * s.x_w * s.x_c) {
    for (int32_t oy = s.pad_top; oy < s.y_h + s.pad_top; oy++) {
      for (int32_t ox = s.pad_left; ox < s.y_w + s.pad_left; ox++) {
        for (int32_t o = 0; o < s.y_c; o++) {
          int64_t sum = bias[o];
          for (int32_t ky = oy % s.stride_h; ky < s.k_h && ky <= oy; ky += s.stride_h) {
            int32_t iy = (oy - ky) / s.stride_h;
            if (iy >= s.x_h) continue;
            for (int32_t kx = ox % s.stride_w; kx < s.k_w && kx <= ox; kx += s.stride_w) {
              int32_t ix = (ox - kx) / s.stride_w;
              if (ix >= s.x_w) continue;
              const int16_t *pixel = x + (iy * s.x_w + ix) * s.x_c;
              const int8_t *weights = w + ((o * s.k_h + ky) * s.k_w + kx) * s.x_c;
              for (int32_t c = 0; c < s.x_c; c++) sum += pixel[c] * weights[c];
            }
          }
          int32_t value = es_requantize_wide(sum, multiplier[o], shift[o]);
          *y++ = (int16_t)es_clamp(value, s.y_min, s.y_max);
        }
      }
    }
  }
}
