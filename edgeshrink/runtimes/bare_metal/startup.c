/* Start-up code of an emulated firmware: from reset to main(), and out by a semihosting exit. */
#include <stdint.h>

extern uint32_t __data_load[], __data_start[], __data_end[], __bss_start[], __bss_end[];
extern uint32_t __stack_top[];

int main(void);
void reset(void);
__attribute__((used)) void es_start(void);

/* Ends the run; the status is what main() returned. */
__attribute__((noreturn)) static void leave(int status)
{
    uint32_t block[2] = {0x20026u, (uint32_t)status}; /* ADP_Stopped_ApplicationExit */
#if defined(__riscv)
    register uint32_t operation __asm("a0") = 0x20u; /* SYS_EXIT_EXTENDED */
    register uint32_t *argument __asm("a1") = block;
    __asm volatile(".option push\n.option norvc\n"
                   "slli x0, x0, 0x1f\nebreak\nsrai x0, x0, 7\n.option pop"
                   : : "r"(operation), "r"(argument) : "memory");
#else
    register uint32_t operation __asm("r0") = 0x20u;
    register uint32_t *argument __asm("r1") = block;
    __asm volatile("bkpt 0xab" : : "r"(operation), "r"(argument) : "memory");
#endif
    for (;;)
        ;
}

void es_start(void)
{
    const uint32_t *from = __data_load;
    for (uint32_t *to = __data_start; to < __data_end;)
        *to++ = *from++;
    for (uint32_t *to = __bss_start; to < __bss_end;)
        *to++ = 0;
#if defined(__ARM_FP)
    *(volatile uint32_t *)0xE000ED88u |= 0xFu << 20; /* CPACR: the FPU is off after reset */
    __asm volatile("dsb\n isb");
#endif
    leave(main());
}

#if defined(__riscv)
__attribute__((naked, section(".vectors"), used)) void reset(void)
{
    __asm volatile("la sp, __stack_top\n j es_start");
}
#else
void reset(void)
{
    es_start();
}

static void fault(void)
{
    for (;;)
        ;
}

__attribute__((section(".vectors"), used)) static const void *const vectors[16] = {
    __stack_top, (const void *)reset, (const void *)fault, (const void *)fault,
    (const void *)fault, (const void *)fault, (const void *)fault,
};
#endif
