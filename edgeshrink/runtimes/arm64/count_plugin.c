/* A plugin of QEMU's user mode that counts executed instructions, and writes the count when asked.
 *
 * The program asks by the system call prctl(MARK, ...), which does nothing but fail. Every mark
 * appends the count so far, 8 bytes in the host's order, to the file of the argument `out=`.
 * A block that is left early by a fault counts as a whole.
 *
 * QEMU packages come without the header of their plugin interface; what is used of it is declared
 * here. API_VERSION is 1 before QEMU 9.0, which no longer takes it, and 2 from there on.
 */
#include <fcntl.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;
struct qemu_info_t;
enum { NO_REGISTERS = 0 }; /* QEMU_PLUGIN_CB_NO_REGS */

typedef void (*on_block_t)(qemu_plugin_id_t id, struct qemu_plugin_tb *block);
typedef void (*on_run_t)(unsigned int cpu, void *data);
typedef void (*on_call_t)(qemu_plugin_id_t id, unsigned int cpu, int64_t number, uint64_t a1,
                          uint64_t a2, uint64_t a3, uint64_t a4, uint64_t a5, uint64_t a6,
                          uint64_t a7, uint64_t a8);

void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t id, on_block_t callback);
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *block, on_run_t callback,
                                          int flags, void *data);
void qemu_plugin_register_vcpu_syscall_cb(qemu_plugin_id_t id, on_call_t callback);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *block);

#define EXPORT __attribute__((visibility("default")))

EXPORT int qemu_plugin_version = API_VERSION;

enum { PRCTL = 167 }; /* of aarch64 */
static const uint64_t MARK = 0x65730001;

static int out = -1;
static uint64_t n_instructions; /* all threads */

static void on_run(unsigned int cpu, void *data) {
    (void)cpu;
    __atomic_fetch_add(&n_instructions, (uint64_t)(uintptr_t)data, __ATOMIC_RELAXED);
}

static void on_block(qemu_plugin_id_t id, struct qemu_plugin_tb *block) {
    (void)id;
    void *size = (void *)(uintptr_t)qemu_plugin_tb_n_insns(block);
    qemu_plugin_register_vcpu_tb_exec_cb(block, on_run, NO_REGISTERS, size);
}

static void on_call(qemu_plugin_id_t id, unsigned int cpu, int64_t number, uint64_t a1, uint64_t a2,
                    uint64_t a3, uint64_t a4, uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8) {
    (void)id, (void)cpu, (void)a2, (void)a3, (void)a4, (void)a5, (void)a6, (void)a7, (void)a8;
    if (number != PRCTL || a1 != MARK) return;
    uint64_t count = __atomic_load_n(&n_instructions, __ATOMIC_RELAXED);
    ssize_t written = write(out, &count, sizeof count);
    (void)written; /* a short file is noticed by its reader */
}

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const struct qemu_info_t *info, int argc,
                               char **argv) {
    (void)info;
    for (int i = 0; i < argc; i++)
        if (strncmp(argv[i], "out=", 4) == 0) out = open(argv[i] + 4, O_WRONLY | O_APPEND);
    if (out < 0) return 1;
    qemu_plugin_register_vcpu_tb_trans_cb(id, on_block);
    qemu_plugin_register_vcpu_syscall_cb(id, on_call);
    return 0;
}
