"""Vectors of artifacts as they travel, packed and unpacked without code of ours."""

from __future__ import annotations

import base64
import math
import random
import struct
from collections.abc import Sequence

K = 12


def encoded(numbers: Sequence[float]) -> str:
    """As it travels."""
    return base64.b64encode(struct.pack(f"<{len(numbers)}e", *numbers)).decode()


def decoded(vector: str) -> tuple[float, ...]:
    raw = base64.b64decode(vector)
    return struct.unpack(f"<{len(raw) // 2}e", raw)


def made_up(nonce: int) -> str:
    """What somebody claims who has computed nothing: a random direction."""
    rng = random.Random(nonce)
    numbers = [rng.gauss(0, 1) for _ in range(K)]
    norm = math.hypot(*numbers)
    return encoded([each / norm for each in numbers])
