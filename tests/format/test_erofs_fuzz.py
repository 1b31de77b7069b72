"""Damaged images and dumps: refused with one of our errors or read, never anything else.

The mutations are random but the same in every run: each test is one seed.
"""

import random

import pytest

from bootwright.erofs import dumpfile
from bootwright.erofs.reader import read_image
from bootwright.erofs.writer import write_image
from bootwright.errors import BootwrightError, ImageError
from fakes.trees import load_vectors

SEEDS = range(12)
ROUNDS = 40
DUMPS = [vector["dump"].encode() for vector in load_vectors()["images"] if len(vector["dump"]) < 4000]
NUMBERS = [0, 1, 11, 12, 36, 255, 4095, 4096, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF]
TOKENS = (
    b" |-|@|\n|\\|\\x00|\\x2f|/|//|.|..|=|0|-1|+5|1_0|40755|120777|20644|@100644|18446744073709551616|1.5|"
    b"trusted.overlay.opaque=y| user.a=b|\xff"
).split(b"|")


def damage_image(image: bytes, chance: random.Random) -> bytes:
    """Change bits, bytes, numbers and whole parts behind the composefs header, or cut the image off."""
    data = bytearray(image)
    for _ in range(chance.choice([1, 1, 2, 3, 8])):
        end = chance.choice([1300, 1500, 4096, len(data)])
        at = chance.randrange(1024, min(end, len(data) - 64))
        match chance.randrange(6):
            case 0:
                data[at] ^= 1 << chance.randrange(8)
            case 1:
                data[at] = chance.randrange(256)
            case 2:
                data[at : at + 2] = (chance.choice(NUMBERS) & 0xFFFF).to_bytes(2, "little")
            case 3:
                at &= ~3
                data[at : at + 4] = chance.choice(NUMBERS).to_bytes(4, "little")
            case 4:
                source = chance.randrange(len(data) - 64)
                length = chance.randrange(64)
                data[at : at + length] = data[source : source + length]
            case _:
                if chance.random() < 0.1:
                    return bytes(data[: chance.randrange(len(data))])
    return bytes(data)


def damage_dump(dump: bytes, chance: random.Random) -> bytes:
    """Change bytes, insert tokens, replace fields, repeat lines."""
    data = bytearray(dump)
    for _ in range(chance.choice([1, 1, 1, 2, 3])):
        lines = data.split(b"\n")
        number = chance.randrange(len(lines))
        at = chance.randrange(len(data) + 1)
        match chance.randrange(5):
            case 0:
                data[at : at + 1] = bytes([chance.randrange(256)])
            case 1:
                data[at:at] = chance.choice(TOKENS)
            case 2:
                del data[at : at + chance.randrange(6)]
            case 3:
                fields = lines[number].split(b" ")
                fields[chance.randrange(len(fields))] = bytearray(chance.choice(TOKENS))
                lines[number] = bytearray(b" ").join(fields)
                data = bytearray(b"\n").join(lines)
            case _:
                lines.insert(chance.randrange(len(lines)), lines[number])
                data = bytearray(b"\n").join(lines)
    return bytes(data)


@pytest.mark.parametrize("seed", SEEDS)
def test_damaged_images(seed: int) -> None:
    chance = random.Random(seed)
    images = [write_image(dumpfile.parse(dump)) for dump in chance.sample(DUMPS, 5)]
    for _ in range(ROUNDS):
        try:
            root = read_image(damage_image(chance.choice(images), chance))
        except BootwrightError:
            continue
        # What the reader lets through can be used like any tree.
        dumpfile.parse(b"".join(dumpfile.write(root)))
        write_image(root)


@pytest.mark.parametrize("seed", SEEDS)
def test_damaged_dumps(seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(ROUNDS * 5):
        try:
            root = dumpfile.parse(damage_dump(chance.choice(DUMPS), chance))
            image = write_image(root)
        except ImageError:
            continue
        read_image(image)


def test_random_bytes_are_no_image() -> None:
    chance = random.Random(1)
    for _ in range(200):
        with pytest.raises(ImageError):
            read_image(chance.randbytes(chance.choice([0, 1, 31, 1024, 4096, 8192])))
