"""The worker process that executes firmware: one ELF in Unicorn, a core without peripherals.

Started by `firmware.py` as `python firmware_worker.py SOCKET_FD PARENT_PID`; speaks the protocol of
`worker.py`. This is the only module that loads Unicorn, whose engine is under the GPL.

Executed blocks are counted by `bare_metal/block_hook.c`. A hook per instruction would be slower
and wrong: it is not called for what an IT instruction predicates off.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # The package that this file belongs to, and not this folder.
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import ctypes
import os
import resource
import signal
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edgeshrink.runtimes import worker
from edgeshrink.runtimes.elf import FunctionMap, Symbol

TABLE_SLOTS: Final = 1 << 17
ALIVE_EVERY_S: Final = 0.5
MEMORY_LIMIT_BYTES: Final = 1 << 31
MAX_PRINTED: Final = 1 << 16
SYSTEM_SPACE: Final = (0xE0000000, 0x100000)  # of every Cortex-M: plain memory here
CPUID: Final = 0xE000ED00
NOWHERE: Final = 0xFFFFFFFE  # where no program gets

# Semihosting operations that a start-up file or a printf may use.
SYS_OPEN, SYS_CLOSE, SYS_WRITEC, SYS_WRITE0, SYS_WRITE, SYS_READ = 1, 2, 3, 4, 5, 6
SYS_ISTTY, SYS_FLEN, SYS_ERRNO, SYS_GET_CMDLINE, SYS_HEAPINFO = 9, 12, 0x13, 0x15, 0x16
SYS_EXIT, SYS_EXIT_EXTENDED, SYS_CLOCK, SYS_ELAPSED = 0x18, 0x20, 0x10, 0x30
APPLICATION_EXIT: Final = 0x20026
SLLI, EBREAK, SRAI, C_EBREAK = 0x01F01013, 0x00100073, 0x40705013, 0x9002

# What Unicorn (version 2.1.4) calls exceptions -> what happened.
ARM_EXCEPTIONS: Final = {
    1: "executes an undefined instruction",
    2: "calls SVC, and there is no operating system",
    3: "jumps to where no code is",
    4: "accesses memory at an address that is not aligned",
    17: "uses a floating-point unit that the core does not have",
    18: "leaves the Thumb state",
}
RISCV_EXCEPTIONS: Final = {
    0: "jumps to an address that is not aligned",
    1: "jumps to where no code is",
    2: "executes an undefined instruction",
    4: "loads from an address that is not aligned",
    5: "loads from where no memory is",
    6: "stores to an address that is not aligned",
    7: "stores to where no memory is",
    8: "calls ECALL, and there is no operating system",
    11: "calls ECALL, and there is no operating system",
}
FIX_CORE: Final = "compile it for this core"
FIX_MEMORY: Final = "the emulator has the program's own memories only: look for a wild pointer"
FIX_PERIPHERAL: Final = "the emulator has no peripherals: leave drivers and clock setup out"
FIX_STACK: Final = "this is just below the stack: give the stack more room"
FIX_SYSTEM: Final = "link the program without an operating system"
FIXES: Final = (("jumps to", FIX_MEMORY), ("where no memory", FIX_MEMORY),
                ("operating system", FIX_SYSTEM))  # fmt: skip
FIX_TIME: Final = "end it by a semihosting exit or BKPT, or allow it more time"


class Fault(Exception):  # noqa: N818
    """The firmware did something that stops it: what, and what can be done."""

    def __init__(self, what: str, fix: str) -> None:
        super().__init__(what)
        self.what, self.fix = what, fix


class _Counts(ctypes.Structure):
    """`counts_t` of block_hook.c."""

    _fields_ = [
        ("table", ctypes.c_void_p),
        ("op_of", ctypes.c_void_p),
        ("mask", ctypes.c_uint32),
        ("n_used", ctypes.c_uint32),
        ("op_base", ctypes.c_uint32),
        ("op_units", ctypes.c_uint32),
        ("op", ctypes.c_uint32),
        ("next", ctypes.c_uint32),
        ("last", ctypes.c_void_p),
        ("overflow", ctypes.c_uint32),
    ]


# `block_t` of block_hook.c
BLOCK: Final = np.dtype(
    [("address", "<u4"), ("size", "<u4"), ("op", "<u4"), ("is_used", "<u4"),
     ("entries", "<u8"), ("taken", "<u8")]
)  # fmt: skip


class _Cache(ctypes.Structure):
    """`cache_t` of memory_hook.c."""

    _fields_ = [
        ("entries", ctypes.c_void_p),
        ("line_bits", ctypes.c_uint32),
        ("n_sets", ctypes.c_uint32),
        ("n_ways", ctypes.c_uint32),
    ]


class _Memory(ctypes.Structure):
    """`memory_t` of memory_hook.c."""

    _fields_ = [
        ("code", ctypes.c_void_p),
        ("data", ctypes.c_void_p),
        ("waits", ctypes.c_void_p),
        ("op", ctypes.c_void_p),
        ("n_ops", ctypes.c_uint32),
        ("low", ctypes.c_uint32),
        ("end", ctypes.c_uint32),
        ("unit_bits", ctypes.c_uint32),
        ("next", ctypes.c_uint32),
        ("unit", ctypes.c_uint32),
        ("status_number", ctypes.c_int),
        ("read_register", ctypes.c_void_p),
        ("write_register", ctypes.c_void_p),
    ]


class Machine:
    """One core with its memories and a program, ready to start."""

    def __init__(self, request: dict[str, Any], op_of: npt.NDArray[np.uint16]) -> None:
        import unicorn
        from unicorn import arm_const, riscv_const

        self.unicorn: Any = unicorn
        self.is_arm = request["cpu"] is not None
        self.core, self.timeout_s = request["core"], float(request["timeout_s"])
        self.functions = FunctionMap(
            Symbol(name=name, address=address, n_bytes=n_bytes, is_function=True)
            for name, address, n_bytes in request["functions"]
        )
        if self.is_arm:
            # Not UC_MODE_MCLASS: it would make every core an M33, whatever the model says.
            self.uc = unicorn.Uc(unicorn.UC_ARCH_ARM, unicorn.UC_MODE_THUMB)
            self.uc.ctl_set_cpu_model(getattr(arm_const, f"UC_CPU_ARM_{request['cpu']}"))
            registers, prefix = arm_const, "UC_ARM_REG_"
            names = {"pc": "PC", "sp": "SP", "first": "R0", "second": "R1"}
        else:
            self.uc = unicorn.Uc(unicorn.UC_ARCH_RISCV, unicorn.UC_MODE_RISCV32)
            registers, prefix = riscv_const, "UC_RISCV_REG_"
            names = {"pc": "PC", "sp": "SP", "first": "A0", "second": "A1"}
        self.registers = {key: getattr(registers, prefix + name) for key, name in names.items()}
        for address, n_bytes, is_writable in request["maps"]:
            protection = unicorn.UC_PROT_READ | unicorn.UC_PROT_EXEC
            self.uc.mem_map(
                address, n_bytes, protection | (unicorn.UC_PROT_WRITE if is_writable else 0)
            )
        if self.is_arm:
            self.uc.mem_map(*SYSTEM_SPACE)
            self.uc.mem_write(CPUID, int(request["cpuid"]).to_bytes(4, "little"))
        content = Path(request["path"]).read_bytes()
        for address, offset, n_bytes in request["writes"]:
            self.uc.mem_write(address, content[offset : offset + n_bytes])
        self.stack: tuple[int, int] | None = None
        if request["stack"] is not None:
            low, top = request["stack"]
            self.stack = low, top
            generator = np.random.default_rng(0)
            self.paint = generator.integers(0, 256, top - low, np.uint8)
            self.uc.mem_write(low, self.paint.tobytes())
        if request["sp"] is not None:
            self.set("sp", request["sp"])
        self.set("pc", request["pc"])
        self.printed = b""
        self.until: int | None = None
        self.trap: int | None = None
        self.access: tuple[int, int, int] | None = None
        self._attach(request["hook"], op_of, request["op_base"])
        self.waits: npt.NDArray[np.uint64] | None = None
        if request["memory"] is not None:
            self._attach_memory(request["memory"])
        self.uc.hook_add(unicorn.UC_HOOK_INTR, self._on_exception)
        self.uc.hook_add(unicorn.UC_HOOK_MEM_INVALID, self._on_bad_access)

    def _attach(self, library: str, op_of: npt.NDArray[np.uint16], op_base: int) -> None:
        """Attach the block hook. Nothing has been translated yet: older blocks would not call it.

        The emulator keeps pointers to what is stored in `self` here.
        """
        self.table = np.zeros(TABLE_SLOTS, BLOCK)
        self.op_of = np.ascontiguousarray(op_of)
        self.counts = _Counts(
            self.table.ctypes.data, self.op_of.ctypes.data, TABLE_SLOTS - 1, 0,
            op_base, self.op_of.size, 0, 0, None, 0,
        )  # fmt: skip
        self.library = ctypes.CDLL(library)
        self._hook(self.unicorn.UC_HOOK_BLOCK, self.library.es_on_block, self.counts)

    def _hook(
        self, kind: int, function: Any, argument: ctypes.Structure, begin: int = 1, end: int = 0
    ) -> None:
        from unicorn.unicorn_py3.unicorn import uclib

        handle = ctypes.c_size_t()
        status = uclib.uc_hook_add(
            self.uc._uch, ctypes.byref(handle), ctypes.c_int(kind),
            ctypes.cast(function, ctypes.c_void_p), ctypes.byref(argument),
            ctypes.c_uint64(begin), ctypes.c_uint64(end),
        )  # fmt: skip
        if status:
            raise RuntimeError(f"a hook can't be attached (error {status})")

    def _attach_memory(self, memory: dict[str, Any]) -> None:
        """Attach the hooks that simulate caches, behind the one that says which operator runs."""
        from unicorn import arm_const
        from unicorn.unicorn_py3.unicorn import uclib

        status = arm_const.UC_ARM_REG_CPSR if self.is_arm else -1
        self.cache_entries: list[npt.NDArray[np.uint32]] = []

        def cache(shape: list[int]) -> _Cache:
            n_sets, n_ways, line_units = shape
            entries = np.zeros((n_sets * n_ways, 2), np.uint32)
            self.cache_entries.append(entries)
            return _Cache(entries.ctypes.data, line_units.bit_length() - 1, n_sets, n_ways)

        code = cache(memory["code"])
        data = code if memory["constants"] is None else cache(memory["constants"])
        self.caches = code, data
        self.waits = np.zeros((int(self.op_of.max(initial=0)) + 1, 5), np.uint64)
        self.memory = _Memory(
            ctypes.addressof(code), ctypes.addressof(data), self.waits.ctypes.data,
            ctypes.addressof(self.counts) + _Counts.op.offset, len(self.waits), memory["low"],
            memory["end"], memory["unit_bytes"].bit_length() - 1, 0, 0xFFFFFFFF, status,
            ctypes.cast(uclib.uc_reg_read, ctypes.c_void_p),
            ctypes.cast(uclib.uc_reg_write, ctypes.c_void_p),
        )  # fmt: skip
        self.memory_library = ctypes.CDLL(memory["hook"])
        self._hook(self.unicorn.UC_HOOK_BLOCK, self.memory_library.es_on_fetch, self.memory)
        self._hook(
            self.unicorn.UC_HOOK_MEM_READ, self.memory_library.es_on_read, self.memory,
            memory["low"], max(memory["low"], memory["end"] - 1),
        )  # fmt: skip

    def get(self, register: str) -> int:
        """Return a register's value: of pc, sp, and the first two arguments."""
        return int(self.uc.reg_read(self.registers[register]))

    def set(self, register: str, value: int) -> None:
        """Set a register."""
        self.uc.reg_write(self.registers[register], value)

    def read(self, address: int, n_bytes: int) -> bytes:
        """Return bytes of memory; Fault where there is none."""
        try:
            return bytes(self.uc.mem_read(address, n_bytes))
        except self.unicorn.UcError as err:
            where = self.where(self.get("pc"))
            raise Fault(f"names {n_bytes} bytes at {address:#x}, where no memory is{where}",
                        FIX_MEMORY) from err  # fmt: skip

    def word(self, address: int) -> int:
        """Return a word of memory."""
        return int.from_bytes(self.read(address, 4), "little")

    def where(self, pc: int) -> str:
        """Return ", at pc 0x8000123 (name+4)"."""
        return f", at pc {self.functions.describe(pc)}"

    def reset_counts(self) -> None:
        """Count from here on."""
        self.table[:] = np.zeros((), BLOCK)
        self.counts.n_used = self.counts.op = self.counts.overflow = 0
        self.counts.last = None
        if self.waits is not None:
            self.waits[:] = 0

    def forget_last_block(self) -> None:
        """Take back the count of the block that `go` stopped in front of."""
        slot = (self.counts.last - self.table.ctypes.data) // BLOCK.itemsize
        self.table["entries"][slot] -= np.uint64(1)

    def go(self, until: int | None) -> int | None:
        """Run until pc is `until`, or the program ends; return its exit status in that case.

        Returns:
            None at `until`; -1 if BKPT or EBREAK ended the program.
        """
        end = time.monotonic() + self.timeout_s
        while True:
            self._expect(until)
            left_us = int(1e6 * (end - time.monotonic()))
            if left_us <= 0:
                raise Fault(f"did not end within {self.timeout_s:g} s{self.where(self.get('pc'))}",
                            FIX_TIME)  # fmt: skip
            start = self.get("pc") | self.is_arm
            try:
                self.uc.emu_start(start, NOWHERE, timeout=left_us)
            except self.unicorn.UcError as err:
                if not self._is_ebreak(err):
                    raise self._fault(err) from err
                status = self._on_ebreak()
                if status is not None:
                    return status
                continue
            if self.trap is not None:
                status = self._on_trap()
                if status is not None:
                    return status
            elif until is not None and self.get("pc") == until:
                return None  # the block that starts here was counted and has not run

    def _expect(self, until: int | None) -> None:
        self.until, self.trap, self.access = until, None, None

    def stops_at(self, addresses: Iterable[int]) -> None:
        """Let `go` stop in front of these functions.

        The emulator's own `until` does not serve here: blocks translated for one `until` are used
        again with another.
        """
        for address in addresses:
            self.uc.hook_add(self.unicorn.UC_HOOK_CODE, self._on_stop, begin=address, end=address)

    def _on_stop(self, uc: Any, address: int, size: int, data: Any) -> None:
        if address == self.until:
            uc.emu_stop()

    def _on_exception(self, uc: Any, number: int, data: Any) -> None:
        self.trap = number
        uc.emu_stop()

    def _on_bad_access(
        self, uc: Any, access: int, address: int, size: int, value: int, data: Any
    ) -> bool:
        self.access = access, address, size
        return False

    def _on_trap(self) -> int | None:
        """Serve a semihosting call; return the exit status if it ends the program."""
        pc = self.get("pc")
        if self.is_arm and self.trap == 7:
            code = int.from_bytes(self.read(pc, 2), "little")
            if code != 0xBEAB:
                return -1
            self.set("pc", pc + 2)
            return self._semihosting()
        known = ARM_EXCEPTIONS if self.is_arm else RISCV_EXCEPTIONS
        what = known.get(self.trap or 0, f"raises exception {self.trap}")
        fix = next((fix for word, fix in FIXES if word in what), FIX_CORE)
        raise Fault(f"{what}{self.where(pc)}", fix)

    def _is_ebreak(self, err: Any) -> bool:
        """Say whether a RISC-V core stopped at EBREAK, which Unicorn reports as undefined."""
        if self.is_arm or err.errno != self.unicorn.UC_ERR_INSN_INVALID:
            return False
        code = self.read(self.get("pc"), 2)
        return code == C_EBREAK.to_bytes(2, "little") or (
            code == EBREAK.to_bytes(4, "little")[:2] and self.word(self.get("pc")) == EBREAK
        )

    def _on_ebreak(self) -> int | None:
        pc = self.get("pc")
        try:
            around = self.word(pc - 4), self.word(pc), self.word(pc + 4)
        except Fault:
            return -1
        if around != (SLLI, EBREAK, SRAI):
            return -1
        self.set("pc", pc + 4)
        return self._semihosting()

    def _semihosting(self) -> int | None:
        """Serve the call in the first two argument registers."""
        operation, argument = self.get("first"), self.get("second")
        answer = 0
        if operation == SYS_EXIT:
            return 0 if argument == APPLICATION_EXIT else 1
        if operation == SYS_EXIT_EXTENDED:
            reason, status = self.word(argument), self.word(argument + 4)
            return status & 0x7FFFFFFF if reason == APPLICATION_EXIT else 1
        if operation == SYS_WRITEC:
            self.printed += self.read(argument, 1)
        elif operation == SYS_WRITE0:
            for address in range(argument, argument + MAX_PRINTED):
                byte = self.read(address, 1)
                if byte == b"\0":
                    break
                self.printed += byte
        elif operation == SYS_WRITE:
            address, n_bytes = self.word(argument + 4), self.word(argument + 8)
            self.printed += self.read(address, min(n_bytes, MAX_PRINTED))
        elif operation == SYS_OPEN:
            name = self.read(self.word(argument), min(64, self.word(argument + 8)))
            answer = 1 if name == b":tt" else 0xFFFFFFFF
        elif operation == SYS_READ:
            answer = self.word(argument + 8)  # nothing was read
        elif operation == SYS_ISTTY:
            answer = 1
        elif operation == SYS_HEAPINFO:
            self.uc.mem_write(self.word(argument), bytes(16))
        elif operation in (SYS_GET_CMDLINE, SYS_CLOCK, SYS_ELAPSED):
            answer = 0xFFFFFFFF
        elif operation not in (SYS_CLOSE, SYS_FLEN, SYS_ERRNO):
            what = f"makes the semihosting call {operation:#x}, which the emulator does not have"
            raise Fault(what + self.where(self.get("pc")), "leave it out")
        self.printed = self.printed[:MAX_PRINTED]
        self.set("first", answer)
        return None

    def _fault(self, err: Any) -> Fault:
        """Return what a Unicorn error means for the program."""
        u, pc = self.unicorn, self.get("pc")
        where = self.where(pc)
        if self.access is not None and err.errno not in (
            u.UC_ERR_FETCH_UNMAPPED, u.UC_ERR_FETCH_PROT, u.UC_ERR_INSN_INVALID
        ):  # fmt: skip
            access, address, size = self.access
            verb = "writes" if "WRITE" in _access_name(u, access) else "reads"
            what = f"{verb} {size} byte(s) at {address:#x}"
            if err.errno == u.UC_ERR_WRITE_PROT:
                return Fault(f"{what}, which is flash{where}", FIX_MEMORY)
            fix = FIX_PERIPHERAL if 0x40000000 <= address < 0x60000000 else FIX_MEMORY
            if not self.is_arm and address >= 0x60000000:
                fix = FIX_PERIPHERAL
            if self.stack is not None and 0 < self.stack[0] - address <= 1 << 16:
                fix = FIX_STACK
            return Fault(f"{what}, where no memory is{where}", fix)
        if err.errno in (u.UC_ERR_FETCH_UNMAPPED, u.UC_ERR_FETCH_PROT):
            return Fault(f"jumps to {pc:#x}, where no code is", FIX_MEMORY)
        if err.errno == u.UC_ERR_INSN_INVALID:
            code = self.read(pc, 2)
            if (self.is_arm and code[1] >= 0xE8) or (not self.is_arm and code[0] & 3 == 3):
                code += self.read(pc + 2, 2)
            what = f"executes {code.hex(' ')}, which is no instruction of {self.core}"
            return Fault(what + where, FIX_CORE)
        return Fault(f"stops: {err}{where}", FIX_CORE)

    def stack_bytes(self) -> int | None:
        """Return how deep the stack has been since the start; None where it is not known."""
        if self.stack is None:
            return None
        low, top = self.stack
        now = np.frombuffer(self.read(low, top - low), np.uint8)
        words = top - low - (top - low) % 4
        same = (now[:words] == self.paint[:words]).reshape(-1, 4).all(axis=1)
        changed = np.flatnonzero(~same)
        if not changed.size:
            return 0
        first = int(changed[0])
        if first == 0 and not same.all():
            # A heap grows from the low end: the stack begins above the largest untouched gap.
            edges = np.flatnonzero(np.diff(np.concatenate(([0], same.view(np.int8), [0]))))
            begins, ends = edges[::2], edges[1::2]
            if begins.size:
                first = int(ends[np.argmax(ends - begins)])
        return top - low - 4 * first

    def measured(self) -> tuple[dict[str, Any], list[npt.NDArray[Any]]]:
        """Return what was counted since `reset_counts`: header and arrays of an answer."""
        if self.counts.overflow:
            raise Fault(f"has more than {TABLE_SLOTS // 2} different blocks", "run less at once")
        used = self.table[self.table["entries"] > 0]
        used = used[np.lexsort((used["size"], used["op"], used["address"]))]
        code = b"".join(self.read(int(block["address"]), int(block["size"])) for block in used)
        columns: list[npt.NDArray[Any]] = [
            np.ascontiguousarray(used[name]) for name in ("address", "size", "op", "entries",
                                                          "taken")
        ]  # fmt: skip
        columns.append(np.frombuffer(code, np.uint8))
        header: dict[str, Any] = {
            "stack_bytes": self.stack_bytes(), "printed": self.printed.decode("latin-1")
        }  # fmt: skip
        if self.waits is not None:
            rows = np.flatnonzero(self.waits.any(axis=1)).tolist()
            header["waits"] = [[row, *self.waits[row].tolist()] for row in rows]
        return header, columns


def _access_name(unicorn: Any, access: int) -> str:
    names = [name for name in dir(unicorn) if name.startswith("UC_MEM_")]
    return next((name for name in names if getattr(unicorn, name) == access), "")


class Session:
    """A firmware with our harness, parked where it waits for the next inference."""

    def __init__(self, machine: Machine, markers: dict[str, int], keep_state: bool) -> None:
        self.machine, self.markers, self.keep_state = machine, markers, keep_state
        self.inputs: list[tuple[int, int]] = []
        self.outputs: list[tuple[int, int]] = []
        self.specs: list[tuple[str, list[int]]] = []
        self.is_fresh = True
        machine.stops_at(markers[name] for name in ("es_wait", "es_begin", "es_done"))
        for name, found in (("es_input", self.inputs), ("es_output", self.outputs)):
            if name in markers:
                machine.uc.hook_add(
                    machine.unicorn.UC_HOOK_CODE, self._note, found, markers[name], markers[name]
                )
        self._go("es_wait")

    def _note(self, uc: Any, address: int, size: int, found: list[tuple[int, int]]) -> None:
        found.append((self.machine.get("first"), self.machine.get("second")))

    def _go(self, marker: str) -> None:
        status = self.machine.go(self.markers[marker])
        if status is not None:
            how = "BKPT" if status < 0 else f"an exit with status {status}"
            what = f"ended by {how} instead of reaching {marker}"
            raise Fault(what + self.machine.where(self.machine.get("pc")), "")

    def infer(
        self, arrays: Sequence[npt.NDArray[Any]], *, count: bool = False
    ) -> list[npt.NDArray[Any]]:
        """Run one inference and return its outputs."""
        machine = self.machine
        machine.set("first", 0 if self.keep_state or self.is_fresh else 1)
        self.is_fresh = False
        self._go("es_begin")
        for (address, _), array in zip(self.inputs, arrays, strict=True):
            machine.uc.mem_write(address, np.ascontiguousarray(array).tobytes())
        if count:
            machine.reset_counts()
        self._go("es_done")
        if count:
            machine.forget_last_block()
        outputs = [
            np.frombuffer(machine.read(address, n_bytes), dtype).reshape(shape)
            for (address, n_bytes), (dtype, shape) in zip(self.outputs, self.specs, strict=True)
        ]
        if not count:
            self._go("es_wait")
        return outputs


def _run(connection: socket.socket, session: Session, n_calls: int, arrays: Any) -> None:
    collected = [np.empty((n_calls, *shape), dtype) for dtype, shape in session.specs]
    told = time.monotonic()
    for call in range(n_calls):
        for result, output in zip(
            collected, session.infer([array[call] for array in arrays]), strict=True
        ):
            result[call] = output
        if time.monotonic() - told > ALIVE_EVERY_S:
            told = time.monotonic()
            worker.send(connection, {"alive": call + 1})
    worker.send(connection, {"ok": n_calls}, collected)


def _count(connection: socket.socket, session: Session, arrays: Any) -> None:
    outputs = session.infer([array[0] for array in arrays], count=True)
    header, columns = session.machine.measured()
    session._go("es_wait")
    worker.send(connection, {"ok": "counted", **header}, [*columns, *outputs])


def _run_to_end(connection: socket.socket, machine: Machine) -> None:
    machine.reset_counts()
    status = machine.go(None)
    header, columns = machine.measured()
    worker.send(connection, {"ok": "ended", "status": status, **header}, columns)


def serve(connection: socket.socket) -> None:
    """Load the program the first message describes, then do what each further one asks."""
    request = worker.receive_header(connection)
    arrays = [worker.receive_array(connection, *spec) for spec in request["arrays"]]
    import unicorn  # noqa: F401  # missing: told from other faults by what was said before

    worker.send(connection, {"ok": "imported"})
    worker.limit_memory(MEMORY_LIMIT_BYTES)
    machine = Machine(request, arrays[0])
    if request["markers"] is None:
        worker.send(connection, {"ok": "opened"})
        session = None
    else:
        session = Session(machine, request["markers"], request["keep_state"])
        worker.send(
            connection, {"ok": "opened", "inputs": session.inputs, "outputs": session.outputs}
        )
    while True:
        try:
            request = worker.receive_header(connection)
        except worker.Gone:
            return
        arrays = [worker.receive_array(connection, *spec) for spec in request["arrays"]]
        if session is None:
            _run_to_end(connection, machine)
        elif request["do"] == "specs":
            session.specs = [(dtype, shape) for dtype, shape in request["outputs"]]
            worker.send(connection, {"ok": "specs"})
        elif request["do"] == "run":
            _run(connection, session, request["calls"], arrays)
        else:
            _count(connection, session, arrays)


def main(socket_fd: int, parent_pid: int) -> None:
    """Serve the parent until it closes the connection or dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(worker.PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    connection = socket.socket(fileno=socket_fd)
    hook: Callable[[Any, Any, Any], None] = lambda kind, error, trace: _report(  # noqa: E731
        connection, error
    )
    sys.excepthook = hook
    serve(connection)
    sys.stderr.flush()
    os._exit(0)


def _report(connection: socket.socket, error: BaseException) -> None:
    answer: dict[str, Any] = {"missing": None}
    if isinstance(error, Fault):
        answer |= {"error": error.what[:4000], "fix": error.fix}
    else:
        answer |= {"error": f"{type(error).__name__}: {error}"[:4000]}
        if isinstance(error, ImportError):
            answer["missing"] = error.name or str(error)
    worker.send(connection, answer)
    os._exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
