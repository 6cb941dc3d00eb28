"""A real `poc worker` with vLLM, and a model that it can serve."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import psutil

from shared.settings import Settings
from support import ROOT, clean_environment, wait_until
from worker.children import spawn


class Worker:
    """One `poc worker` and all processes below it."""

    def __init__(self, settings: Settings, model: Path, directory: Path, **more: str) -> None:
        self.log_path = directory / "worker.log"
        env = clean_environment() | {
            "POC_REDIS_URL": settings.redis_url,
            "POC_NAMESPACE": settings.namespace,
            "POC_LEASE_S": str(settings.lease_s),
            "POC_HEARTBEAT_S": str(settings.heartbeat_s),
            "POC_ENGINE": "vllm",
            "POC_MODEL": str(model),
        }
        command = [sys.executable, "-m", "worker.cli", "worker"]
        self.process = spawn(command, env=env | more, cwd=ROOT, log_path=self.log_path)

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def wait_until_ready(self) -> None:
        """Loaded, and taking part in rounds."""
        wait_until(
            lambda: " ready." in self.log or self.process.poll() is not None, 280, "the worker"
        )
        assert self.process.poll() is None, self.log

    @property
    def served_at(self) -> str:
        """The address of vLLM's API."""
        served = re.search(r"serving \S+ on (http://\S+)", self.log)
        assert served, self.log
        return served[1]

    def below(self) -> list[psutil.Process]:
        """The processes that vLLM started, all of them."""
        return [
            each
            for each in psutil.Process(self.process.pid).children(recursive=True)
            if "resource_tracker" not in " ".join(each.cmdline())
        ]


def add_tokenizer(model: Path, words: int) -> None:
    """Give a random checkpoint a tokenizer of `words` words: w0, w1, ..."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {f"w{number}": number for number in range(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(model / "tokenizer.json"))
    kind = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (model / "tokenizer_config.json").write_text(json.dumps(kind))
