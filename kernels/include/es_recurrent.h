/* Layers with a memory of their own: SVDF and LSTM. */
#ifndef ES_RECURRENT_H
#define ES_RECURRENT_H

#include "es_base.h"

ES_BEGIN

typedef struct {
  int32_t batches, n_in;
  int32_t n_units;             /* outputs of a sample */
  int32_t rank;                /* filters of a unit */
  int32_t memory;              /* samples that a filter remembers */
  int32_t x_zero, y_zero;      /* zero points */
  int32_t state_zero;
  int32_t feature_multiplier, feature_shift; /* from sums over the input to the state */
  int32_t time_multiplier, time_shift;       /* from sums over the state to the output */
} es_svdf_shape;

void es_svdf_s8__ref(const es_svdf_shape *shape, const int8_t *x, const int8_t *w_feature,
                     const int8_t *w_time, const int32_t *bias, int8_t *state, int8_t *y);
void es_svdf_s8s16__ref(const es_svdf_shape *shape, const int8_t *x, const int8_t *w_feature,
                        const int16_t *w_time, const int32_t *bias, int16_t *state, int8_t *y);

/* Gates are 0: input, 1: forget, 2: cell, 3: output. */
typedef struct {
  int32_t batches, steps;
  int32_t n_in, n_units;
  int32_t x_batch, x_step;     /* values from one sample, one step to the next in x */
  int32_t y_batch, y_step;     /* and in y */
  int32_t x_zero, h_zero;      /* zero points of x, and of hidden and y */
  int32_t x_multiplier0, x_shift0, h_multiplier0, h_shift0; /* sums to Q3.12, of gate 0 */
  int32_t x_multiplier1, x_shift1, h_multiplier1, h_shift1;
  int32_t x_multiplier2, x_shift2, h_multiplier2, h_shift2;
  int32_t x_multiplier3, x_shift3, h_multiplier3, h_shift3;
  int32_t forget_multiplier, forget_shift; /* Q0.15 times cell to cell */
  int32_t input_multiplier, input_shift;   /* Q0.15 times Q0.15 to cell */
  int32_t output_multiplier, output_shift; /* Q0.15 times Q0.15 to y */
  int32_t tanh_multiplier, tanh_shift;     /* cell to the positions of the table */
  int32_t cell_clip;                       /* largest magnitude of cell; 0: no limit but int16 */
} es_lstm_shape;

void es_lstm_s8__ref(const es_lstm_shape *shape, const int8_t *x, const int8_t *weights,
                     const int32_t *bias, const uint16_t *table, int8_t *hidden, int16_t *cell,
                     int8_t *y);

/* 1 / (1 + e^-v) in Q0.15; `z` is v in steps of 1 / (24 * 2^9), the table is that of
 * es_logistic_s16__ref. */
static inline int32_t es_table_logistic(const uint16_t *table, int32_t z) {
  uint32_t magnitude = (uint32_t)(z < 0 ? -z : z);
  uint32_t index = magnitude >> 9, rest = magnitude & 0x1ff;
  uint32_t value = UINT32_C(0x7fff) << 10;
  if (index < 255) {
    value = ((uint32_t)table[index] << 9) + rest * (uint32_t)(table[index + 1] - table[index]);
  }
  value = z >= 0 ? value + 512 : (UINT32_C(1) << 25) - value + 511;
  return (int32_t)(value >> 10);
}

/* tanh(v) in Q0.15; `z` is v in steps of 1 / (12 * 2^10), by the same table. */
static inline int32_t es_table_tanh(const uint16_t *table, int32_t z) {
  int32_t magnitude = z < 0 ? -z : z;
  int32_t index = magnitude >> 8, rest = magnitude & 0xff;
  int32_t value = INT32_C(0xffff) << 8;
  if (index < 255) {
    value = ((int32_t)table[index] << 8) + rest * (table[index + 1] - table[index]);
  }
  value -= INT32_C(1) << 23;
  return (z >= 0 ? value + 128 : 127 - value) >> 8;
}

/* sum + sum_i (x[i] - zero) * w[i] */
static inline int32_t es_dot_s8(const int8_t *x, int32_t zero, const int8_t *w, int32_t n,
                                int32_t sum) {
  for (int32_t i = 0; i < n; i++) sum += (x[i] - zero) * w[i];
  return sum;
}

static inline int32_t es_clamp_s16(int32_t x) { return es_clamp(x, INT16_MIN, INT16_MAX); }

ES_END

#endif
