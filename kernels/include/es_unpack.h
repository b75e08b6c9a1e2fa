/* Shapes and scales as the shared kernels of the DSP folder take them: few bytes, few arguments. */
#ifndef ES_UNPACK_H
#define ES_UNPACK_H

#include "es_conv.h"
#include "es_dsp.h"

static inline int32_t es_unsigned_byte(int32_t word, int32_t i) { return word >> (8 * i) & 0xFF; }
static inline int32_t es_signed_byte(int32_t word, int32_t i) { return (int8_t)(word >> (8 * i)); }
static inline int32_t es_lower_half(int32_t word) { return word & 0xFFFF; }
static inline int32_t es_upper_half(int32_t word) { return word >> 16 & 0xFFFF; }

ES_OUTLINE void es_unpack(const es_conv_packed_shape *from, es_conv_shape *to) {
  int32_t x = from->x_size, y = from->y_size, c = from->channels, f = from->filters;
  int32_t w = from->window, s = from->steps, l = from->levels;
  to->x_h = es_lower_half(x), to->x_w = es_upper_half(x);
  to->y_h = es_lower_half(y), to->y_w = es_upper_half(y);
  to->x_c = es_lower_half(c), to->y_c = es_upper_half(c);
  to->k_c = es_lower_half(f), to->batches = es_upper_half(f);
  to->k_h = es_unsigned_byte(w, 0), to->k_w = es_unsigned_byte(w, 1);
  to->pad_top = es_unsigned_byte(w, 2), to->pad_left = es_unsigned_byte(w, 3);
  to->stride_h = es_unsigned_byte(s, 0), to->stride_w = es_unsigned_byte(s, 1);
  to->dilation_h = es_unsigned_byte(s, 2), to->dilation_w = es_unsigned_byte(s, 3);
  to->x_zero = es_signed_byte(l, 0), to->y_zero = es_signed_byte(l, 1);
  to->y_min = es_signed_byte(l, 2), to->y_max = es_signed_byte(l, 3);
}

#endif
