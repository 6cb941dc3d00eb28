"""Imported once, by the process that vLLM's engine is a fork of: it saves that engine's imports.

These take as long as the worker's own, and happen at the same time.
"""

import contextlib

from worker.children import lead_and_follow

lead_and_follow()
with contextlib.suppress(Exception):  # the fork tries again, and says what is wrong
    from worker.engines.vllm import extension, internals  # noqa: F401 - what the fork would import

    internals.import_engine()
