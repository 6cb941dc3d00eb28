"""`poc selftest`: known vectors against our order, and against a model that computes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plain_artifacts import PlainModel
from shared.config import PoCConfig
from shared.errors import ConfigError, EngineError, InvalidRequest
from shared.schemes.artifact import ArtifactTerms
from shared.settings import load_settings
from vectors import encoded, made_up
from worker.cli import main
from worker.schemes import artifact
from worker.tools import selftest
from worker.tools.make_model import make_model
from worker.tools.selftest import Known, Order, Plan, Report, examine

BLOCK: dict[str, Any] = {"block_hash": "B10C", "public_key": "them"}
HIDDEN = 512


def like_a_models(
    nonces: Sequence[int], alike: float = 0.5, k: int = 12, hidden_size: int = HIDDEN
) -> list[str]:
    """Vectors of hidden states whose dimensions have a mean of their own.

    `alike` is how much of them two nonces have in common: 0 in a model with random weights.
    """
    rng = np.random.default_rng(1)
    means = np.sqrt(alike) * rng.choice([-1.0, 1.0], hidden_size)
    noise = rng.normal(size=(len(nonces), hidden_size))
    hidden = (means + np.sqrt(1 - alike) * noise).astype(np.float32)
    picked = np.take_along_axis(hidden, artifact.picks("B10C", "them", nonces, hidden_size, k), 1)
    w = artifact.rotations("B10C", "them", nonces, k)
    return [str(each) for each in artifact.encode(artifact.normalised(artifact.rotate(picked, w)))]


def published(nonces: Sequence[int], vectors: Sequence[str], **more: Any) -> dict[str, Any]:
    """As nodes publish it."""
    artifacts = [{"nonce": n, "vector_b64": v} for n, v in zip(nonces, vectors, strict=True)]
    return (
        BLOCK
        | {
            "seq_len": 1024,
            "k_dim": 12,
            "total_nonces": 1152,
            "artifacts": artifacts,
            "generation_time_sec": 32.0,
            "nonces_per_min": 2159.5,
        }
        | more
    )


def of_order(fields: dict[str, Any], hidden_size: int = HIDDEN) -> Order:
    report = examine(load_settings({}), Plan(Known.of(fields), hidden_size=hidden_size))
    assert report.compared is None
    assert report.passes is report.order.is_right
    return report.order


class TestFiles:
    CONFIG = PoCConfig(
        **BLOCK, block_height=7, node_id=1, node_count=3, terms=ArtifactTerms(k_dim=2)
    )
    VECTORS = ("ADwAQA==", "AEIARA==")

    def test_the_forms_there_are(self) -> None:
        """Published, posted to a receiver, printed by `poc proofs`."""
        body = self.CONFIG.terms.body_of(self.CONFIG, [1, 4], self.VECTORS)
        posted = json.loads(body.head + ",".join(body.items) + body.tail)
        printed = self.CONFIG.terms.batch_of(self.CONFIG, [1, 4], self.VECTORS)
        for fields in (
            published([1, 4], self.VECTORS, k_dim=2),
            posted,
            json.loads(printed.model_dump_json()),
        ):
            known = Known.of(fields)
            assert known.batch.nonces == [1, 4]
            assert known.batch.vectors == list(self.VECTORS)
            assert (known.k_dim, known.batch.public_key) == (2, "them")
        assert Known.of(posted).seq_len is None

    def test_what_else_a_file_says(self) -> None:
        fields = published([1, 4], self.VECTORS, k_dim=2, hidden_size=64, poc_stronger_rng=True)
        known = Known.of(fields)
        assert (known.seq_len, known.hidden_size, known.strong_rng) == (1024, 64, True)

    @pytest.mark.parametrize(
        ("fields", "why"),
        [
            ({}, r"batch\.nonces: Field required"),
            (BLOCK | {"nonces": [1]}, "holds no vectors"),
            (BLOCK | {"artifacts": []}, "holds no vectors"),
            ({"artifacts": [{"nonce": 1, "vector_b64": "AA=="}]}, r"public_key: Field required"),
            (published([1], ["?"]), r"artifacts\.0\.vector_b64: is no base64"),
            (published([1], ["AA=="]), "nonce 1: .* holds 1 bytes; 12 values of float16 are 24"),
            (published([1], ["AA=="], k_dim=0), "k_dim: must be a whole number"),
            (published([1], ["ADw="], k_dim=1, seq_len="1024"), "seq_len: must be a whole number"),
            (published([2**31], ["ADw="], k_dim=1), r"artifacts\.0\.nonce"),
        ],
    )
    def test_what_is_wrong_is_refused_by_name(self, fields: dict[str, Any], why: str) -> None:
        with pytest.raises(InvalidRequest, match=why):
            Known.of(fields)


class TestOrder:
    @pytest.mark.parametrize("count", [100, 400, 1000])
    @pytest.mark.parametrize("alike", [0.45, 0.75])
    def test_a_models_vectors_are_in_order(self, alike: float, count: int) -> None:
        """As alike as those of published models; however many there are."""
        order = of_order(published(range(count), like_a_models(range(count), alike)))
        assert order.is_right is True
        assert order.nonces == count

    @pytest.mark.parametrize("count", [100, 1000])
    def test_ascending_dimensions_are_another_order(
        self, count: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Which is right in part, and shows it by its score."""
        right = artifact.picks
        with monkeypatch.context() as patched:
            patched.setattr(artifact, "picks", lambda *given: np.sort(right(*given), axis=1))
            vectors = like_a_models(range(count), 0.6)
        order = of_order(published(range(count), vectors))
        assert order.is_right is False
        assert count < 1000 or order.score > 5

    @pytest.mark.parametrize("other", [{"public_key": "x"}, {"block_hash": "x"}])
    def test_another_key_or_block_is_none(self, other: dict[str, str]) -> None:
        order = of_order(published(range(400), like_a_models(range(400)), **other))
        assert order.is_right is False
        assert abs(order.score) < 4

    def test_another_width_is_none(self) -> None:
        assert of_order(published(range(400), like_a_models(range(400))), 700).is_right is False

    def test_random_weights_have_none(self) -> None:
        assert of_order(published(range(400), like_a_models(range(400), 0))).is_right is False

    def test_a_handful_says_nothing(self) -> None:
        """Unless it is told otherwise by chance once in thirty thousand."""
        few = of_order(published(range(10), like_a_models(range(10))))
        assert few.is_right is None
        enough = like_a_models(range(few.wanted), 0.45)
        assert of_order(published(range(few.wanted), enough)).is_right is True

    def test_the_score_grows_as_the_count_does(self) -> None:
        """So what is needed does: in a larger sample the right order is as clear as in a small."""
        scores = [
            of_order(published(range(n), like_a_models(range(n), 0.6))) for n in (200, 400, 800)
        ]
        parts = [each.score / each.needed for each in scores]
        assert max(parts) / min(parts) < 1.3
        assert scores[2].needed == pytest.approx(4 * scores[0].needed, rel=0.02)

    def test_a_vector_with_nan_is_passed_over(self) -> None:
        vectors = like_a_models(range(400))
        vectors[7] = encoded([float("nan")] * 12)
        assert of_order(published(range(400), vectors)).is_right is True

    def test_the_width_must_be_known(self) -> None:
        known = Known.of(published(range(2), like_a_models(range(2))))
        with pytest.raises(ConfigError, match="--hidden-size: the file does not say"):
            examine(load_settings({}), Plan(known))
        with pytest.raises(InvalidRequest, match="hidden_size=8: vectors have 12 numbers"):
            examine(load_settings({}), Plan(known, hidden_size=8))
        with_it = Known.of(published(range(2), like_a_models(range(2)), hidden_size=HIDDEN))
        assert examine(load_settings({}), Plan(with_it)).order.hidden_size == HIDDEN


class TestCommand:
    """What a script sees of it."""

    @pytest.fixture
    def poc(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
        """Run `poc selftest` on a file with these fields; its exit status."""

        def run(fields: dict[str, Any], *options: str) -> int:
            (tmp_path / "v.json").write_text(json.dumps(fields))
            words = ["poc", "selftest", f"--vectors={tmp_path / 'v.json'}", *options]
            monkeypatch.setattr(sys, "argv", words)
            with pytest.raises(SystemExit) as ended:
                main()
            return int(ended.value.code or 0)

        return run

    def test_the_exit_status_says_what_came_of_it(
        self, poc: Callable[..., int], capsys: pytest.CaptureFixture[str]
    ) -> None:
        vectors, wide = like_a_models(range(200)), f"--hidden-size={HIDDEN}"
        assert poc(published(range(200), vectors), wide) == 0
        assert "order     as ours: score" in capsys.readouterr().out
        assert poc(published(range(200), vectors, block_hash="x"), wide, "--json") == 3
        told = json.loads(capsys.readouterr().out)
        assert (told["passes"], told["order"]["is_right"]) == (False, False)
        assert poc(published(range(5), vectors[:5]), wide) == 1
        assert "can't be told" in capsys.readouterr().out

    def test_a_file_that_is_none_is_told_by_its_name(
        self, poc: Callable[..., int], capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert poc(published([1], ["?"])) == 2
        assert "v.json: batch.artifacts.0.vector_b64: is no base64" in capsys.readouterr().err
        assert poc(published([1], like_a_models([1])), "--dist-threshold=0") == 2
        assert "dist_threshold" in capsys.readouterr().err
        assert poc(published([1], like_a_models([1]))) == 2
        assert "--hidden-size" in capsys.readouterr().err


SEQ_LEN, NONCES = 16, range(3, 43)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("selftest") / "model", max_seq_len=64)


@pytest.fixture(scope="module")
def right(model: Path) -> list[str]:
    return list(map(encoded, PlainModel(model).vectors("B10C", "them", NONCES, SEQ_LEN)))


@pytest.fixture
def compared(model: Path) -> Callable[..., Report]:
    """What the model makes of vectors: `compared(vectors, dtype="bfloat16", sample=10)`."""

    def compare(vectors: Sequence[str], dtype: str = "auto", **plan: Any) -> Report:
        settings = load_settings(
            {}, engine="transformers", model=str(model), device="cpu", dtype=dtype
        )
        known = Known.of(published(NONCES, vectors, seq_len=SEQ_LEN))
        return examine(settings, Plan(known, **plan))

    return compare


class TestModel:
    def test_its_own_vectors_match(
        self, compared: Callable[..., Report], right: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        report = compared(right)
        assert report.passes is True
        assert report.compared
        assert report.compared.verdict.n_mismatch == 0
        assert report.compared.per_minute > 0
        selftest.show(report)
        said = " ".join(capsys.readouterr().out.split())
        assert "40 of 40 match; you would make " in said
        assert "0.01 to 0.1 is right" in said
        assert "about 1.4 is another computation" in said
        selftest.show_json(report)
        told = json.loads(capsys.readouterr().out)
        assert (told["passes"], told["matches"], told["n_total"]) == (True, 40, 40)
        assert len(told["l2"]) == 40
        assert told["l2_max"] < 1e-3
        assert told["profile"]["dtype"] == "float32"
        # The model is a random one: its dimensions say nothing of the order.
        assert told["order"]["is_right"] is not True

    def test_other_floats_match(self, compared: Callable[..., Report], right: list[str]) -> None:
        report = compared(right, dtype="bfloat16")
        assert report.passes
        assert report.compared
        assert 0.001 < max(each or 0 for each in report.compared.verdict.l2) < 0.1

    def test_only_the_first_are_computed(
        self, compared: Callable[..., Report], right: list[str]
    ) -> None:
        report = compared(right, sample=10, batch_size=4)
        assert report.compared
        assert report.compared.verdict.nonces == list(NONCES[:10])
        assert report.order.nonces == 40

    def test_what_somebody_made_up_does_not(
        self, compared: Callable[..., Report], capsys: pytest.CaptureFixture[str]
    ) -> None:
        report = compared([made_up(nonce) for nonce in NONCES])
        assert report.passes is False
        assert report.compared
        l2 = report.compared.verdict.l2
        assert np.mean([each or 0 for each in l2]) == pytest.approx(1.4, abs=0.1)
        selftest.show(report)
        assert "0 of 40 match" in capsys.readouterr().out

    def test_too_few_to_be_called_a_fraud_do_not_pass(
        self, compared: Callable[..., Report], right: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        """An honest node has one of one wrong once in ten."""
        wrong = [made_up(nonce) for nonce in NONCES]
        report = compared(wrong, sample=1)
        assert report.passes is None
        selftest.show(report)
        assert "0 of 1 match" in (said := " ".join(capsys.readouterr().out.split()))
        assert "too few to tell" in said
        assert compared(wrong, sample=2).passes is False
        assert compared(right, sample=1).passes is True

    def test_another_length_is_another_computation(
        self, compared: Callable[..., Report], right: list[str]
    ) -> None:
        """The option counts more than the file."""
        assert compared(right, seq_len=SEQ_LEN + 1).passes is False

    def test_what_does_not_fit_the_model_is_refused(
        self, compared: Callable[..., Report], right: list[str], model: Path
    ) -> None:
        with pytest.raises(InvalidRequest, match=r"hidden_size=65: .* has 64; it is another model"):
            compared(right, hidden_size=65)
        with pytest.raises(ConfigError, match=r"seq_len=65: .* computes 1 to 64 positions"):
            compared(right, seq_len=65)
        settings = load_settings({}, engine="transformers", model=str(model), device="cpu")
        known = Known.of(BLOCK | {"nonces": [1], "vectors": right[:1], "scheme": "artifact"})
        with pytest.raises(ConfigError, match="--seq-len: the file does not say"):
            examine(settings, Plan(known))
        wide = like_a_models([1], k=65)
        with pytest.raises(InvalidRequest, match=r"65"):
            examine(settings, Plan(Known.of(published([1], wide, k_dim=65, seq_len=16))))

    def test_a_model_that_gives_no_numbers_is_an_error(
        self, compared: Callable[..., Report], right: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(selftest, "proofs", lambda *_: [None] * 40)
        with pytest.raises(EngineError, match="no finite numbers for 40 of 40 nonces"):
            compared(right)
