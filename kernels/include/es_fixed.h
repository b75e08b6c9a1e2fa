/* Functions of fixed-point numbers, exact to the reference's. Qm.n has m bits before the point and
 * n = 31 - m behind it; a product of Qa and Qb is Q(a + b), rounded. */
#ifndef ES_FIXED_H
#define ES_FIXED_H

#include "es_base.h"

ES_BEGIN

/* x * 2^n, saturating; 0 <= n <= 30. */
static inline int32_t es_saturating_shl(int32_t x, int32_t n) {
  if (x > (INT32_MAX >> n)) return INT32_MAX;
  if (x < (INT32_MIN >> n)) return INT32_MIN;
  return es_wrap_shl(x, n);
}

/* Leading zero bits; 32 for 0. */
static inline int32_t es_leading_zeros(uint32_t x) {
  int32_t n = 0;
  if (x == 0) return 32;
  for (; (x & UINT32_C(0x80000000)) == 0; x <<= 1) n++;
  return n;
}

/* e^x in Q0.31 of x <= 0 in Q5.26: x is a multiple of 1/4 less a rest in (0, 1/4]; a polynomial for
 * the rest, around -1/8, then a factor for each bit of the multiple. */
static inline int32_t es_exp_q5(int32_t x) {
  int32_t quarter = INT32_C(1) << 24, bit;
  int32_t rest = (x & (quarter - 1)) - quarter, multiple = rest - x;
  int32_t r = rest * 32 + (INT32_C(1) << 28); /* Q0.31 */
  int32_t r2 = es_doubling_high_mul(r, r);
  int32_t r3 = es_doubling_high_mul(r2, r);
  int32_t r4 = es_doubling_high_mul(r2, r2);
  int32_t tail = es_rounding_shift_right(r4, 2) + r3;
  int32_t y = INT32_C(1895147668); /* e^(-1/8) */
  if (x == 0) return INT32_MAX;
  tail = es_doubling_high_mul(tail, INT32_C(715827883)) + r2; /* 1/3 */
  y += es_doubling_high_mul(y, r + es_rounding_shift_right(tail, 1));
  for (bit = 0; bit < 7; bit++) {
    /* e^(-2^(bit - 2)) */
    const int32_t factors[7] = {INT32_C(1672461947), INT32_C(1302514674), INT32_C(790015084),
                                INT32_C(290630308),  INT32_C(39332535),   INT32_C(720401),
                                INT32_C(242)};
    if (multiple & (quarter << bit)) y = es_doubling_high_mul(y, factors[bit]);
  }
  return y;
}

/* 1 / (1 + x) in Q0.31 of x in Q0.31, x >= 0: three steps of Newton's method on (1 + x) / 2. */
static inline int32_t es_reciprocal_of_one_plus(int32_t x) {
  int32_t half = (int32_t)(((int64_t)x + INT32_MAX + 1) / 2);
  int32_t y = INT32_C(1515870810) + es_doubling_high_mul(half, -INT32_C(1010580540)); /* Q2.29 */
  int32_t step;
  for (step = 0; step < 3; step++) {
    int32_t error = (INT32_C(1) << 29) - es_doubling_high_mul(half, y);
    y += es_saturating_shl(es_doubling_high_mul(y, error), 2);
  }
  return es_saturating_shl(y, 1);
}

/* ln(x) in Q5.26 of x >= 1 in Q12.19. x is r * 2^k for r around sqrt(sqrt(1/2)); k comes in steps
 * of a half (a and b below), and ln(r) is a quotient of two polynomials. */
static inline int32_t es_log_q12(int32_t x) {
  const int32_t ln_2 = INT32_C(1488522236), root_half = INT32_C(1518500250);
  const int32_t center = INT32_C(1805811301);   /* sqrt(sqrt(1/2)) */
  const int32_t cubic = INT32_C(117049297);     /* 11/240 * sqrt(sqrt(2)) */
  const int32_t square = INT32_C(127690142);    /* 1/20 * sqrt(sqrt(2)) */
  const int32_t constant = INT32_C(1057819769); /* 2 / sqrt(sqrt(2)) - sqrt(sqrt(2)) */
  const int32_t linear = INT32_C(638450708);    /* 1/4 * sqrt(sqrt(2)) */
  const int32_t quarter = INT32_C(1) << 23;     /* Q6.25, as are the exponents */
  int32_t a = es_leading_zeros((uint32_t)x);
  int32_t b = es_leading_zeros((uint32_t)es_doubling_high_mul(x, root_half)) - 1;
  int32_t r_a = es_doubling_high_mul(es_saturating_shl(x, a - 1), root_half);
  int32_t r = es_min(es_saturating_shl(r_a, 1), es_saturating_shl(x, b));
  int32_t k_a = (12 - a) * (INT32_C(1) << 25) + quarter;
  int32_t k_b = (12 - b) * (INT32_C(1) << 25) - quarter;
  int32_t k = es_max(k_a, k_b);
  int32_t p = (int32_t)(((int64_t)r + center + 1) / 2);
  int32_t q = es_wrap_shl(r - center, 1);
  int32_t q2 = es_doubling_high_mul(q, q);
  int32_t top =
      es_doubling_high_mul(q, r) + es_doubling_high_mul(es_doubling_high_mul(q, q2), cubic);
  int32_t bottom = es_doubling_high_mul(p, constant + q + es_doubling_high_mul(square, q2)) +
                   es_doubling_high_mul(linear, q);
  int32_t ln_r =
      es_doubling_high_mul(es_rounding_shift_right(top, 6), es_reciprocal_of_one_plus(bottom));
  return es_saturating_shl(es_doubling_high_mul(k, ln_2) + ln_r, 1);
}

/* A factor of es_requantize. */
typedef struct {
  int32_t multiplier, shift;
} es_scaled;

/* 1 / sqrt(x) of an integer x >= 0, that of 0 as that of 1: five steps of Newton's method, started
 * at 1, on x scaled by a power of four into [1/2, 2) of Q3.28. */
static inline es_scaled es_reciprocal_root(int32_t x) {
  es_scaled root = {INT32_MAX, 0};
  int32_t shift = 11, pairs, step, y = INT32_C(1) << 28, half;
  if (x <= 1) return root;
  for (; x >= (INT32_C(1) << 29); x /= 4) shift++;
  pairs = (es_leading_zeros((uint32_t)x) - 1) / 2 - 1;
  shift -= pairs;
  x = es_wrap_shl(x, 2 * pairs);
  half = es_rounding_shift_right(x >> 1, 1);
  for (step = 0; step < 5; step++) {
    int32_t cube = es_doubling_high_mul(es_doubling_high_mul(y, y), y);
    int32_t next = es_doubling_high_mul((INT32_C(1) << 28) + (INT32_C(1) << 27), y);
    next -= es_doubling_high_mul(half, es_saturating_shl(cube, 6));
    y = es_saturating_shl(next, 3);
  }
  y = es_doubling_high_mul(y, INT32_C(1518500250)); /* sqrt(1/2) */
  root.multiplier = shift < 0 ? es_wrap_shl(y, -shift) : y;
  root.shift = shift < 0 ? 0 : -shift;
  return root;
}

/* The entry of a table of 513, between which it is linear, for an int16 value. */
static inline int32_t es_interpolate(const int16_t *table, int32_t value) {
  int32_t index = 256 + (value >> 7);
  return table[index] + (((table[index + 1] - table[index]) * (value & 127) + 64) >> 7);
}

ES_END

#endif
