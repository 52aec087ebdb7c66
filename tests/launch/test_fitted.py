"""What a run's model settings come to when they are fitted to a GPU's memory."""

from __future__ import annotations

import pytest
from omegaconf import DictConfig

from framework import build
from framework.errors import ConfigError
from launch.dry_run import advice
from launch.fit import planned
from launch.fitted import Way, chosen, fitted
from launch.settings import RunSettings, as_begun, check_same, parse, with_model

AUTO = {"tokens_per_micro_batch": "auto", "gradient_checkpointing": "auto"}


class Linear:
    """Memory that grows with tokens, less fast the more is recomputed; counts its rehearsals."""

    def __init__(self) -> None:
        self.asked: list[Way] = []

    def __call__(self, way: Way) -> int:
        self.asked.append(way)
        return 10_000 + {False: 5, "selective": 3, True: 1}[way.recomputed] * way.tokens


@pytest.mark.parametrize(
    ("there", "most", "expected"),
    [
        (10**9, 4096, (4096, False)),
        (10**9, 5000, (8192, False)),
        (10**9, 100_000, (131_072, False)),
        (10_000 + 5 * 16_384, 100_000, (16_384, False)),
        (10_000 + 5 * 16_384 - 1, 100_000, (8192, False)),
        (10_000 + 5 * 4096 - 1, 100_000, (4096, "selective")),
        (10_000 + 3 * 4096, 100_000, (4096, "selective")),
        (10_000 + 3 * 4096 - 1, 100_000, (8192, True)),
        (10_000, 100_000, (4096, True)),
    ],
)
def test_as_many_tokens_as_fit_and_recomputed_only_where_4096_do_not(there, most, expected) -> None:
    peak = Linear()

    assert chosen(peak, there, tokens="auto", recomputed="auto", most=most) == expected
    assert len(peak.asked) <= 5


def test_what_is_given_stays() -> None:
    peak = Linear()

    given = {"tokens": 100, "recomputed": False, "most": 10**6}
    assert chosen(peak, 10**9, **given) == chosen(peak, 0, **given) == (100, False)
    assert peak.asked == []
    assert chosen(peak, 10_400, **{**given, "recomputed": "auto"}) == (100, "selective")
    assert chosen(peak, 10**9, tokens="auto", recomputed=True, most=8192) == (8192, True)
    assert peak.asked == [(100, False), (100, "selective"), (8192, True)]


def config_of(*arguments: str) -> DictConfig:
    given = ["benchmark=mini_small", "output=x", *arguments]
    return parse(given, entry="train", schema=RunSettings, about="")[0]


def test_a_run_that_does_not_fit_is_fitted_by_rehearsals(capsys) -> None:
    config = config_of("trainer=grad_ascent", "batch_size=8", "model.layers=4")
    benchmark = build(config.benchmark)
    whole = planned(config, benchmark).memory().most

    assert fitted(with_model(config, AUTO), benchmark, None) == with_model(config, AUTO)
    assert fitted(with_model(config, AUTO), benchmark, whole) == config
    assert capsys.readouterr().err == ""
    less = whole
    for how, typed in (("selective", "selective"), (True, "true")):
        smaller = fitted(with_model(config, AUTO), benchmark, less - 1)
        assert smaller == with_model(config, {"gradient_checkpointing": how})
        told = capsys.readouterr().err
        assert told.startswith(f"model.gradient_checkpointing={typed}: without it a step needs 0.0")
        before, less = less, planned(smaller, benchmark).memory().most
        assert less < before


def test_without_a_gpu_nothing_is_fitted() -> None:
    typed = [f"model.{name}=auto" for name in AUTO]

    assert config_of(*typed) == config_of()


def test_what_can_be_recomputed_is_told_where_another_word_is_typed() -> None:
    allowed = "must be a bool or 'selective' or 'auto', got 'some'"
    with pytest.raises(ConfigError, match=rf"model\.gradient_checkpointing {allowed}"):
        config_of("model.gradient_checkpointing=some")
    typed = config_of("model.gradient_checkpointing=selective")
    assert typed.model.gradient_checkpointing == "selective"


def test_a_run_goes_on_with_what_it_was_fitted_to() -> None:
    config = config_of()
    begun = {"tokens_per_micro_batch": 16_384, "gradient_checkpointing": True}
    earlier = with_model(config, begun)

    check_same(with_model(config, AUTO), earlier)
    assert as_begun(with_model(config, AUTO), earlier) == earlier
    with pytest.raises(ConfigError, match=r"begun with model\.tokens_per_micro_batch=16384, not"):
        check_same(config, earlier)


def test_advice_names_what_the_run_has_not_done_yet() -> None:
    assert advice(config_of()) == [
        "model.gradient_checkpointing=selective",
        "model.gradient_checkpointing=true",
        "model.tokens_per_micro_batch=2048",
        "zero=2 on more GPUs",
        "zero=3 on more GPUs",
        "zero=3_offload",
        "tuning=lora",
    ]
    assert (
        advice(
            config_of(
                *("zero=3_offload", "model.gradient_checkpointing=true", "tuning=lora"),
                "model.tokens_per_micro_batch=600",
            )
        )
        == []
    )


def test_the_references_files_are_as_large_as_what_is_kept() -> None:
    npo, kl, none = (
        planned(config, build(config.benchmark))
        for config in map(config_of, ("trainer=npo", "trainer.retain_loss=kl", "trainer=grad_diff"))
    )
    tokens = npo.reference_bytes // 4

    assert none.reference_bytes == 0
    assert tokens > 0
    assert (kl.reference_bytes - npo.reference_bytes) % (96 * 4) == 0
    assert kl.reference_bytes > 96 * npo.reference_bytes
