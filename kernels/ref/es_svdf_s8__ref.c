/* Layer with a memory: every filter reduces the sample to one value, remembers its last ones, and
 * weights them; a unit adds its filters. Time weights and state are int8.
 *
 *   state[b][f] moves by one place; its last value = clamp(requantize(sum_i (x[b][i] - x_zero) *
 *       w_feature[f][i])) + state_zero
 *   y[b][u] = clamp(requantize(bias[u] + sum_r,m w_time[f][m] * (state[b][f][m] - state_zero))
 *       + y_zero),   f = u * rank + r
 *
 *   x          [in]     int8 (batches, n_in)
 *   w_feature  [in]     int8 (n_units * rank, n_in), symmetric
 *   w_time     [in]     int8 (n_units * rank, memory), symmetric
 *   bias       [in]     int32 (n_units)
 *   state      [inout]  int8 (batches, n_units * rank, memory); kept from call to call
 *   y          [out]    int8 (batches, n_units), must not alias x
 *
 * Pre:   n_in <= 2^16: 2^16 * 255 * 2^7 < 2^31. Sums over the state wrap, and so does the sum of
 *        state_zero and a clamped value, as the reference's do.
 * Exact: TensorFlow Lite Micro's SVDF, which ignores a fused activation. */
#include "es_recurrent.h"

void es_svdf_s8__ref(const es_svdf_shape *shape, const int8_t *x, const int8_t *w_feature,
                     const int8_t *w_time, const int32_t *bias, int8_t *state, int8_t *y) {
  const es_svdf_shape s = *shape;
  for (int32_t b = 0; b < s.batches; b++, x += s.n_in) {
    const int8_t *features = w_feature;
    const int8_t *times = w_time;
    for (int32_t u = 0; u < s.n_units; u++) {
      int32_t total = bias[u];
      for (int32_t r = 0; r < s.rank; r++, state += s.memory) {
        int32_t value = 0;
        for (int32_t i = 0; i < s.n_in; i++) value += *features++ * (x[i] - s.x_zero);
        value = es_requantize(value, s.feature_multiplier, s.feature_shift);
        value = es_clamp(value, INT8_MIN, INT8_MAX);
        for (int32_t m = 0; m < s.memory - 1; m++) state[m] = state[m + 1];
        state[s.memory - 1] = (int8_t)(s.state_zero + value);
        for (int32_t m = 0; m < s.memory; m++) {
          total = es_wrap_add(total, *times++ * (state[m] - s.state_zero));
        }
      }
      total = es_requantize(total, s.time_multiplier, s.time_shift);
      *y++ = (int8_t)es_clamp(es_wrap_add(total, s.y_zero), INT8_MIN, INT8_MAX);
    }
  }
}
