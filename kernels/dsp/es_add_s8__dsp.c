/* Sum or difference of two int8 tensors of one shape, as es_add_s8__ref, with fewer instructions.
 *
 *   y[i] = clamp(requantize(A(a[i]) + b_sign * B(b[i])) + y_zero)
 *   A(v) = requantize((v - a_zero) * 2^20), B alike
 *
 *   a  [in]   int8 (n)
 *   b  [in]   int8 (n)
 *   y  [out]  int8 (n); may be a or b, or begin below one of them
 *
 * Pre:   -22 <= y_shift <= -1, -31 <= a_shift, b_shift <= 0, and the scales of a and b are at most
 *        half of the common scale (0 shifts mean exactly half): |A|, |B| < 2^27, no sum overflows.
 * Exact: es_add_s8__ref, bit for bit.
 *
 * Fast:  a rounded high product, a correction by the sign and one shift for each of the three
 *        requantizations (see es_requantize_dsp): 19 instructions for a value without loads. */
#include "es_dsp.h"
#include "es_elementwise.h"

/* (v - zero) * 2^20 on the common scale. A factor of exactly 1/2 has no shift to the right: it is
 * taken as twice the value, shifted by 1, which rounds nothing. */
static inline int32_t es_common_scale(int32_t v, int32_t left, int32_t zero, int32_t multiplier,
                                      int32_t half, int32_t right) {
  int32_t x = es_wrap_add(es_wrap_shl(v, left), -zero);
  return (es_high_product(x, multiplier, half) + (x >> 31)) >> right;
}

void es_add_s8__dsp(const es_add_shape *shape, const int8_t *a, const int8_t *b, int8_t *y) {
  int32_t a_right = es_max(1, -shape->a_shift), b_right = es_max(1, -shape->b_shift);
  int32_t a_left = shape->a_shift ? 21 : 22, b_left = shape->b_shift ? 21 : 22;
  int32_t a_zero = es_wrap_shl(shape->a_zero, a_left), b_zero = es_wrap_shl(shape->b_zero, b_left);
  int32_t a_half = es_wrap_shl(1, a_right - 1), b_half = es_wrap_shl(1, b_right - 1);
  int32_t a_multiplier = shape->a_multiplier, b_multiplier = shape->b_multiplier;
  int32_t sign = shape->b_sign, right = -shape->y_shift, multiplier = shape->y_multiplier;
  int32_t half = es_wrap_shl(1, right - 1) + es_wrap_shl(shape->y_zero, right);
  int32_t y_min = shape->y_min, y_max = shape->y_max;
  for (int32_t i = 0; i < shape->n; i++) {
    int32_t p = es_common_scale(a[i], a_left, a_zero, a_multiplier, a_half, a_right);
    int32_t q = es_common_scale(b[i], b_left, b_zero, b_multiplier, b_half, b_right);
    int32_t sum = 2 * (p + sign * q);
    int32_t value = (es_high_product(sum, multiplier, half) + (sum >> 31)) >> right;
    y[i] = (int8_t)es_clamp(value, y_min, y_max);
  }
}
