/* memcpy, memmove, memset and memcmp for toolchains that bring no C library. Compiled without the
 * compiler's own idea of these names, or it would turn each loop into a call of itself. */
#include <stddef.h>
#include <stdint.h>

void *memcpy(void *restrict to, const void *restrict from, size_t n);
void *memmove(void *to, const void *from, size_t n);
void *memset(void *to, int value, size_t n);
int memcmp(const void *left, const void *right, size_t n);

typedef uint32_t __attribute__((may_alias)) word_t;

static int is_aligned(const void *a, const void *b)
{
    return (((uintptr_t)a | (uintptr_t)b) & 3u) == 0;
}

void *memcpy(void *restrict to, const void *restrict from, size_t n)
{
    uint8_t *d = to;
    const uint8_t *s = from;
    if (is_aligned(d, s)) {
        for (; n >= 16; n -= 16, d += 16, s += 16) {
            word_t a = ((const word_t *)s)[0], b = ((const word_t *)s)[1];
            word_t c = ((const word_t *)s)[2], e = ((const word_t *)s)[3];
            ((word_t *)d)[0] = a;
            ((word_t *)d)[1] = b;
            ((word_t *)d)[2] = c;
            ((word_t *)d)[3] = e;
        }
        for (; n >= 4; n -= 4, d += 4, s += 4)
            *(word_t *)d = *(const word_t *)s;
    }
    for (; n; n--)
        *d++ = *s++;
    return to;
}

void *memmove(void *to, const void *from, size_t n)
{
    uint8_t *d = to;
    const uint8_t *s = from;
    if ((uintptr_t)d - (uintptr_t)s >= n)
        return memcpy(to, from, n);
    if (is_aligned(d + n, s + n))
        for (; n >= 4; n -= 4)
            *(word_t *)(d + n - 4) = *(const word_t *)(s + n - 4);
    while (n--)
        d[n] = s[n];
    return to;
}

void *memset(void *to, int value, size_t n)
{
    uint8_t *d = to;
    const uint32_t word = 0x01010101u * (uint8_t)value;
    for (; n && ((uintptr_t)d & 3u); n--)
        *d++ = (uint8_t)value;
    for (; n >= 16; n -= 16, d += 16) {
        ((word_t *)d)[0] = word;
        ((word_t *)d)[1] = word;
        ((word_t *)d)[2] = word;
        ((word_t *)d)[3] = word;
    }
    for (; n >= 4; n -= 4, d += 4)
        *(word_t *)d = word;
    for (; n; n--)
        *d++ = (uint8_t)value;
    return to;
}

int memcmp(const void *left, const void *right, size_t n)
{
    const uint8_t *a = left, *b = right;
    for (; n; n--, a++, b++)
        if (*a != *b)
            return *a - *b;
    return 0;
}

#if defined(__arm__)
/* The names that compilers call on Arm, of the run-time ABI; 4 and 8 say how a pointer is aligned. */
#define ALIAS(target) __attribute__((alias(#target)))
void __aeabi_memset(void *to, size_t n, int value);
void __aeabi_memclr(void *to, size_t n);
void __aeabi_memset(void *to, size_t n, int value) { memset(to, value, n); }
void __aeabi_memclr(void *to, size_t n) { memset(to, 0, n); }
void *__aeabi_memcpy(void *restrict to, const void *restrict from, size_t n) ALIAS(memcpy);
void *__aeabi_memcpy4(void *restrict to, const void *restrict from, size_t n) ALIAS(memcpy);
void *__aeabi_memcpy8(void *restrict to, const void *restrict from, size_t n) ALIAS(memcpy);
void *__aeabi_memmove(void *to, const void *from, size_t n) ALIAS(memmove);
void *__aeabi_memmove4(void *to, const void *from, size_t n) ALIAS(memmove);
void *__aeabi_memmove8(void *to, const void *from, size_t n) ALIAS(memmove);
void __aeabi_memset4(void *to, size_t n, int value) ALIAS(__aeabi_memset);
void __aeabi_memset8(void *to, size_t n, int value) ALIAS(__aeabi_memset);
void __aeabi_memclr4(void *to, size_t n) ALIAS(__aeabi_memclr);
void __aeabi_memclr8(void *to, size_t n) ALIAS(__aeabi_memclr);
#endif
