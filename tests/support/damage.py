"""Damage to bytes, the same for the same chance: what a fuzzer tries on a format of lengths."""

import random
from typing import Final

TELLING: Final = (
    b"\x00\x00\x00\x00",
    b"\xff\xff\xff\xff",
    b"\xff\xff\xff\x7f",
    b"\xfe\xff\x00\xe0\xff\xff\xff\xff",  # an item of undefined length
    b"\xfe\xff\x0d\xe0\x00\x00\x00\x00",  # the delimiters of an item and of a sequence
    b"\xfe\xff\xdd\xe0\x00\x00\x00\x00",
    b"\xe0\x7f\x10\x00",  # Pixel Data
    b"SQ\x00\x00\xff\xff\xff\xff",
    b"UN",
    b"../../../",
    b"\x00",
)


def mutated(data: bytes, chance: random.Random) -> bytes:
    """A copy with up to six wounds; most of them where headers are, at the beginning."""
    damaged = bytearray(data)
    for _ in range(chance.randint(1, 6)):
        at = int(len(damaged) * chance.random() ** 2)
        end = at + chance.randint(1, 16)
        match chance.randrange(7):
            case 0 if damaged:
                damaged[min(at, len(damaged) - 1)] ^= 1 << chance.randrange(8)
            case 1:
                damaged[at:end] = chance.randbytes(end - at)
            case 2:
                telling = chance.choice(TELLING)
                damaged[at : at + len(telling)] = telling
            case 3:
                damaged[at:at] = chance.choice(TELLING)
            case 4:
                del damaged[at:end]
            case 5:
                damaged[at:at] = damaged[at : at + chance.randint(1, 200)]
            case 6 if chance.random() < 0.3:
                del damaged[at:]
    return bytes(damaged)
