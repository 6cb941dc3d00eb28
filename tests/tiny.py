"""A model as small as can be, and jobs for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from worker.job import Job

VOCAB_SIZE = 160
HIDDEN_SIZE = 32
SEQ_LEN = 12


def job(*nonces: int, **changes: Any) -> Job:
    return Job(
        **{"block_hash": "b", "public_key": "k", "seq_len": SEQ_LEN, "nonces": nonces, **changes}
    )


def edit_json(file: Path, **changes: Any) -> None:
    """Change keys of a file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
