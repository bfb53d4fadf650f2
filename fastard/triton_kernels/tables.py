"""How large a program is: elements it handles at a time, and warps, by the size of the work."""

from __future__ import annotations

from typing import NamedTuple


class Block(NamedTuple):
    """Elements of a block and the warps that share it."""

    size: int
    warps: int


# Elementwise, by bytes an element: 16 bytes a thread of 128, 6 KB of three fp32 inputs in flight.
ELEMENTWISE = {2: Block(1024, 4), 4: Block(512, 4), 8: Block(256, 4)}
# Twice that from here on: fewer programs where there are enough for every multiprocessor.
MANY_ELEMENTS = 1 << 22

# A sample held in registers: 8 or 16 elements a thread of two or three arrays. 32 a thread, or
# 1,024 threads of 64 registers, spill.
HELD = (Block(256, 4), Block(1024, 4), Block(2048, 4), Block(4096, 8))
# A sample that one program reads again in every pass, by bytes an element that is computed with.
REREAD = {4: Block(4096, 32), 8: Block(2048, 32)}
# A sample that several programs share, each a part of it.
SHARED = Block(2048, 4)
MOST_PARTS = 256

# Rows, by classes: several short ones fill 1,024 elements.
ROWS = (Block(1024, 4), Block(2048, 8), Block(4096, 8))
MOST_CLASSES_WIDE = 2048  # fp64
LONG_ROW = Block(2048, 16)
RANKED = Block(512, 4)
TOTAL = Block(1024, 4)


def power_of_2(n: int) -> int:
    """The first that is not below n."""
    return 1 << max(n - 1, 0).bit_length()


def elementwise(total: int, itemsize: int) -> Block:
    block = ELEMENTWISE[itemsize]
    return block._replace(size=block.size * 2) if total >= MANY_ELEMENTS else block


def held(n: int) -> Block | None:
    """The block that holds a sample of n elements; None where none does."""
    return next((block for block in HELD if n <= block.size), None)


def parts(n: int) -> tuple[int, int]:
    """Elements of a part (whole blocks) and how many parts a sample of n has."""
    blocks = -(-n // SHARED.size)
    each = -(-blocks // MOST_PARTS) * SHARED.size
    return each, -(-n // each)


def rows(classes: int, wide: bool) -> tuple[int, Block] | None:
    """Rows of a program and the block of each; None where a row is too long to hold."""
    if wide and classes > MOST_CLASSES_WIDE:
        return None
    fitting = next((block for block in ROWS if classes <= block.size), None)
    if fitting is None:
        return None
    size = power_of_2(classes)
    return fitting.size // size if fitting == ROWS[0] else 1, Block(size, fitting.warps)
