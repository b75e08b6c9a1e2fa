/* Any function of one int8 value, as a table.
 *
 *   y[i] = table[x[i] & 255]
 *
 *   x      [in]   int8 (n)
 *   table  [in]   int8 (256): entries 0 to 127 for x >= 0, entries 128 to 255 for -128 to -1
 *   y      [out]  int8 (n); may be x, or begin below it
 *
 * Exact: whatever the table is exact to. */
#include "es_lookup.h"

void es_lookup_s8__ref(const int8_t *x, const int8_t *table, int8_t *y, int32_t n) {
  for (int32_t i = 0; i < n; i++) y[i] = table[(uint8_t)x[i]];
}
