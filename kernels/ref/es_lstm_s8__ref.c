/* LSTM over a sequence: int8 activations and weights, int32 bias, int16 cell state.
 *
 *   For every step, with g_k = clamp(clamp(requantize(bias[u][k] + sum_i (x[i] - x_zero) * w)) +
 *       clamp(requantize(sum_j (hidden[j] - h_zero) * w))) in Q3.12 for the gates k of unit u:
 *   cell[u]   = clip(clamp(requantize(logistic(g_1) * cell[u])) +
 *                    clamp(requantize(logistic(g_0) * tanh(g_2))))
 *   y[u]      = clamp(requantize(tanh(cell[u]) * logistic(g_3)) + h_zero); hidden = y
 *
 *   x        [in]     int8, where the strides of the shape say
 *   weights  [in]     int8 (n_units, 4, n_in + n_units), symmetric: those of x, those of hidden
 *   bias     [in]     int32 (n_units, 4)
 *   table    [in]     uint16 (256), that of es_logistic_s16__ref
 *   hidden   [inout]  int8 (batches, n_units); kept from call to call
 *   cell     [inout]  int16 (batches, n_units), zero point 0; kept from call to call
 *   y        [out]    int8, where the strides of the shape say; must not alias x
 *
 * Pre:   |bias| + 255 * 128 * max(n_in, n_units) < 2^31 (the lowering checks it);
 *        |cell| * tanh_multiplier + 2^30 < 2^31.
 * Exact: TensorFlow Lite Micro's UNIDIRECTIONAL_SEQUENCE_LSTM. */
#include "es_recurrent.h"

void es_lstm_s8__ref(const es_lstm_shape *shape, const int8_t *x, const int8_t *weights,
                     const int32_t *bias, const uint16_t *table, int8_t *hidden, int16_t *cell,
                     int8_t *y) {
  const es_lstm_shape s = *shape;
  const int32_t scales[4][4] = {
      {s.x_multiplier0, s.x_shift0, s.h_multiplier0, s.h_shift0},
      {s.x_multiplier1, s.x_shift1, s.h_multiplier1, s.h_shift1},
      {s.x_multiplier2, s.x_shift2, s.h_multiplier2, s.h_shift2},
      {s.x_multiplier3, s.x_shift3, s.h_multiplier3, s.h_shift3},
  };
  for (int32_t b = 0; b < s.batches; b++, hidden += s.n_units, cell += s.n_units) {
    for (int32_t t = 0; t < s.steps; t++) {
      const int8_t *values = x + b * s.x_batch + t * s.x_step, *w = weights;
      int8_t *results = y + b * s.y_batch + t * s.y_step;
      for (int32_t u = 0; u < s.n_units; u++) {
        int32_t gates[4];
        for (int32_t k = 0; k < 4; k++, w += s.n_in + s.n_units) {
          const int32_t *scale = scales[k];
          int32_t a = es_dot_s8(values, s.x_zero, w, s.n_in, bias[4 * u + k]);
          int32_t h = es_dot_s8(hidden, s.h_zero, w + s.n_in, s.n_units, 0);
          a = es_clamp_s16(es_requantize(a, scale[0], scale[1]));
          h = es_clamp_s16(es_requantize(h, scale[2], scale[3]));
          a = 3 * es_clamp_s16(a + h);
          gates[k] = k == 2 ? es_table_tanh(table, a) : es_table_logistic(table, a);
        }
        int32_t kept = es_requantize(gates[1] * cell[u], s.forget_multiplier, s.forget_shift);
        int32_t added = es_requantize(gates[0] * gates[2], s.input_multiplier, s.input_shift);
        int32_t c = es_clamp_s16(es_clamp_s16(kept) + es_clamp_s16(added));
        if (s.cell_clip > 0) c = es_clamp(c, -s.cell_clip, s.cell_clip);
        cell[u] = (int16_t)c;
        int32_t half = s.tanh_shift > 0 ? INT32_C(1) << (s.tanh_shift - 1) : 0;
        c = es_table_tanh(table, (c * s.tanh_multiplier + half) >> s.tanh_shift);
        c = es_requantize(c * gates[3], s.output_multiplier, s.output_shift);
        results[u] = (int8_t)es_clamp(es_wrap_add(c, s.h_zero), INT8_MIN, INT8_MAX);
      }
      es_copy(hidden, results, s.n_units);
    }
  }
}
