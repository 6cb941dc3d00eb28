"""What the tests of a GPU compute: small, but of sizes that its kernels are made for."""

from __future__ import annotations

from functools import partial

import driver

VOCAB_SIZE, SEQ_LEN = 32_000, 256

job = partial(driver.job, seq_len=SEQ_LEN)
