/* The four functions that memory.c has; freestanding toolchains come without this header. */
#ifndef EDGESHRINK_STRING_H
#define EDGESHRINK_STRING_H
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#define restrict
#endif
void *memcpy(void *restrict to, const void *restrict from, size_t n);
void *memmove(void *to, const void *from, size_t n);
void *memset(void *to, int value, size_t n);
int memcmp(const void *left, const void *right, size_t n);
#ifdef __cplusplus
#undef restrict
}
#endif
#endif
