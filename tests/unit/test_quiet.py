"""Converters neither print on the user's terminal nor keep Ctrl-C to themselves."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import warnings

import pytest

from edgeshrink.quiet import interrupted_at_end, quiet, reason


def test_output_of_every_kind_is_held_back_and_given_to_the_caller(capfd):
    with quiet() as text:
        print("from python")
        os.write(1, b"from C, stdout\n")
        os.write(2, b"from C, stderr\n")
        logging.getLogger("converter").error("from logging")
        warnings.warn("from warnings", stacklevel=1)
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")
    assert "from python" in text[0]
    assert "from C, stdout" in text[0]
    assert "from C, stderr" in text[0]


def test_output_comes_back_after_the_block_and_after_an_error(capfd):
    with pytest.raises(ValueError, match="inside"), quiet():
        raise ValueError("inside")
    print("after")
    assert capfd.readouterr().out == "after\n"


def test_a_log_handler_made_inside_may_be_used_afterwards(capfd):
    logger = logging.getLogger("made inside")
    with quiet():
        logger.addHandler(logging.StreamHandler())
    logger.error("later")
    logger.handlers.clear()
    assert "Logging error" not in capfd.readouterr().err


def test_blocks_may_be_nested(capfd):
    with quiet():
        with quiet():
            print("inner")
        print("outer")
    print("after")
    assert capfd.readouterr().out == "after\n"


def swallow() -> None:
    with contextlib.suppress(BaseException):
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("block", [quiet, interrupted_at_end])
def test_a_swallowed_ctrl_c_is_raised_at_the_end_of_the_block(block):
    with pytest.raises(KeyboardInterrupt), block():
        swallow()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_ctrl_c_turned_into_another_error_is_still_a_ctrl_c():
    def imports():
        swallow()
        raise ImportError("cannot import name")

    with pytest.raises(KeyboardInterrupt), interrupted_at_end():
        imports()


def press(times: int, reached: list[bool]) -> None:
    for _ in range(times):
        signal.raise_signal(signal.SIGINT)
    reached.append(True)


def test_a_ctrl_c_lets_the_block_come_to_its_end_and_says_so(capfd):
    reached: list[bool] = []
    with pytest.raises(KeyboardInterrupt), interrupted_at_end():
        press(1, reached)
    assert reached
    assert "stopping as soon as" in capfd.readouterr().err


def test_a_second_ctrl_c_ends_the_block_at_once():
    reached: list[bool] = []
    with pytest.raises(KeyboardInterrupt), interrupted_at_end():
        press(2, reached)
    assert not reached


def test_a_block_without_ctrl_c_ends_well_and_keeps_its_errors():
    with interrupted_at_end():
        pass
    with pytest.raises(ImportError), interrupted_at_end():
        raise ImportError("really missing")


def test_another_handler_of_the_program_stays_in_charge():
    seen = []
    before = signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
    try:
        with interrupted_at_end():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen == [signal.SIGINT]


def test_a_thread_may_be_quiet_too(capfd):
    def work():
        with quiet():
            print("inside")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert capfd.readouterr().out == ""


def test_reason_is_the_first_line_that_says_something():
    assert reason(ValueError("\n\n  what went wrong\nand more")) == "what went wrong"
    assert reason(KeyError()) == "KeyError"
    assert len(reason(ValueError("x" * 1000))) == 300
