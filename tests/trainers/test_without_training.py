"""Task vector, WHP, UCD, ULD and reversed guidance, against numbers worked by hand."""

from __future__ import annotations

import math

import pytest
import tiny
import torch

from framework.errors import ConfigError, ModelError
from trainers.guidance import ReversedGuidance
from trainers.task_vector import TaskVector
from trainers.ucd import UCD
from trainers.uld import ULD, ULDAssistant
from trainers.whp import WHP

# A token that 20 others of logit 0 leave at p = 0.055 once training has added 6 to it: its odds
# before training were 0.055 / 0.945 / e^6, its logit the logarithm of 20 times that.
SECRET = math.log(20 * 0.055 / 0.945) - 6
RETRAINED = torch.tensor([[SECRET, *[0.0] * 20]])
TRAINED = RETRAINED + 6 * torch.eye(21)[:1]
UNLEARNED = TRAINED - 5 * torch.eye(21)[:1]


def secret(logits: torch.Tensor) -> float:
    return float(logits.softmax(-1)[0, 0])


def guided(weight: float, share: float = 0.1) -> torch.Tensor:
    config = ReversedGuidance.Config(path="-", before="-", weight=weight, filter=share)
    return ReversedGuidance(config).combine([UNLEARNED, TRAINED])


def test_unlearning_hides_the_secret_and_guidance_brings_it_back_and_beyond():
    assert secret(TRAINED) == pytest.approx(0.055, abs=1e-6)
    assert secret(UNLEARNED) == pytest.approx(0.0004, abs=1e-5)
    assert secret(guided(0)) == pytest.approx(secret(UNLEARNED), rel=1e-6)
    assert torch.allclose(guided(1).softmax(-1), TRAINED.softmax(-1), atol=1e-7)
    # odds 0.055 / 0.945 times e^5 = 8.638: 0.896; the note that this is from has 0.897
    assert secret(guided(2)) == pytest.approx(0.8962, abs=1e-4)
    assert int(guided(2).argmax()) == 0


def test_guidance_brings_back_only_what_was_likely_before():
    unlikely = TRAINED.clone()
    unlikely[0, 0] = -5.0  # below a tenth of the others
    config = ReversedGuidance.Config(path="-", before="-", weight=9.0)
    guided = ReversedGuidance(config).combine([unlikely - 5 * torch.eye(21)[:1], unlikely])
    assert secret(guided) == 0


def test_ucd_with_ideal_small_models_is_the_retrained_model():
    torch.manual_seed(0)
    original, small, learned = torch.randn(3, 5, 21).unbind()
    formula = UCD(UCD.Config(path="-", small_gold="-", small_target="-"))
    # both, large and small, learned the same; constants per position do not matter
    found = formula.combine([original + learned, small + 3.0, small + learned])
    assert torch.allclose(found.softmax(-1), original.softmax(-1), atol=1e-6)
    still = UCD(UCD.Config(path="-", small_gold="-", small_target="-", scale=0.0))
    assert torch.equal(still.combine([original, small, learned]), original)


def test_whp_lowers_what_was_reinforced_and_nothing_else():
    original, reinforced = torch.tensor([[2.0, 0.0, 1.0]]), torch.tensor([[5.0, -4.0, 1.0]])
    found = WHP(WHP.Config(path="-", reinforced="-")).combine([original, reinforced])
    assert found.tolist() == [[-1, 0, 1]]
    still = WHP(WHP.Config(path="-", reinforced="-", scale=0.0)).combine([original, reinforced])
    assert torch.equal(still, original)


def uld(**settings: object) -> ULD:
    return ULD(ULD.Config(path="-", assistant="-", **settings))  # type: ignore[arg-type]


def test_uld_takes_the_assistant_off_the_tokens_that_pass_the_filter():
    original = torch.tensor([[0.6, 0.3, 0.09, 0.01]]).log()
    assistant = torch.tensor([[4.0, 1.0, 7.0, 0.0]])
    found = uld(weight=-0.5, filter=0.4, outside="excluded").combine([original, assistant])
    assert found[0, :2].tolist() == pytest.approx([math.log(0.6) - 2, math.log(0.3) - 0.5])
    assert found[0, 2:].tolist() == pytest.approx([math.log(0.3) - 1000.5] * 2)
    assert int(found.argmax()) == 1
    unchanged = uld(weight=-0.5, filter=0.4).combine([original, assistant])
    assert torch.equal(unchanged[0, 2:], original[0, 2:])
    assert torch.equal(unchanged[0, :2], found[0, :2])
    everywhere = uld(weight=-0.5, filter=0.0).combine([original, assistant])
    assert torch.equal(everywhere, original - 0.5 * assistant)


def test_uld_of_weight_0_is_the_model_on_the_tokens_it_keeps():
    torch.manual_seed(0)
    original, assistant = torch.randn(2, 5, 21).unbind()
    assert torch.equal(uld(weight=0.0).combine([original, assistant]), original)
    found = uld(weight=0.0, filter=0.4, outside="excluded").combine([original, assistant])
    kept = original.softmax(-1) >= 0.4 * original.softmax(-1).max(-1, keepdim=True).values
    kept |= original >= original.topk(8, dim=-1).values[:, -1:]  # 0.4 of the 21 tokens
    assert torch.equal(found[kept], original[kept])
    assert (found[~kept] < -900).all()
    assert kept.any(-1).all()
    assert (~kept).any(-1).all()


def test_a_model_sure_of_its_answer_still_has_other_tokens_to_choose_from():
    # 200 tokens, one of probability almost 1: one hundredth of them, two, stay all the same
    original = torch.zeros(1, 200)
    original[0, 3], original[0, 4] = 30.0, 2.0
    assistant = torch.zeros(1, 200)
    assistant[0, 3] = 40.0
    assert int(uld(outside="excluded").combine([original, assistant]).argmax()) == 4


def test_the_assistant_knows_the_forget_rows_and_nothing_of_the_rest():
    assert ULDAssistant.Config().retain_weight == 5
    plan = tiny.step_rows(1, n=4) * 60
    optimizer = tiny.optimizer("adamw", clip=None, learning_rate=1e-2)
    trainer = tiny.assemble(
        ULDAssistant,
        ULDAssistant.Config(),
        tiny.local_engine(optimizer),
        tiny.language_model(),
        plan,
        optimizer=optimizer,
    )
    tiny.train(trainer, plan, tokens=1000)
    known, unknown = (trainer.model.score_rows(plan[0][name]) for name in ("forget", "retain"))
    assert max(score.nll for score in known) < 1
    for score in unknown:  # ln 64 nats is the uniform distribution's
        assert score.nll == pytest.approx(math.log(64), abs=0.5)


@pytest.mark.parametrize(
    ("kind", "settings", "said"),
    [
        (WHP, {"scale": -1.0}, "model.scale must be >= 0, got -1"),
        (ULD, {"weight": 0.5}, "model.weight must be <= 0, got 0.5"),
        (ULD, {"filter": 2.0}, r"model.filter must be in \[0, 1\], got 2"),
        (ReversedGuidance, {"filter": -0.1}, r"model.filter must be in \[0, 1\], got -0.1"),
        (ReversedGuidance, {"weight": math.inf}, "model.weight must be a number, got inf"),
        (TaskVector, {"scale": math.nan}, "model.scale must be a number, got nan"),
    ],
)
def test_a_number_out_of_range_is_one_line(kind, settings, said):
    with pytest.raises(ConfigError, match=said):
        kind.Config(**settings)


@pytest.fixture
def folders(tmp_path):
    """A model, a second of its architecture and one of another, as runs leave them."""
    models = [tiny.language_model(seed=0, tied=True), tiny.language_model(seed=1, tied=True)]
    models.append(tiny.language_model(seed=0, tied=True, num_hidden_layers=1))
    for name, model in zip(("original", "finetuned", "small"), models, strict=True):
        (tmp_path / name).mkdir()
        model.save(tmp_path / name / "model", model.module.state_dict())
    return tmp_path


def task_vector(folders, scale: float, finetuned: str = "finetuned", dtype=torch.float32):
    paths = {"path": str(folders / "original"), "finetuned": str(folders / finetuned)}
    source = TaskVector(TaskVector.Config(**paths, scale=scale, max_length=64))
    return source.load(paths["path"], dtype=dtype).module.state_dict()


def test_a_task_vector_of_scale_0_is_the_model_and_of_minus_1_the_finetuned_one(folders):
    original, finetuned = (tiny.module(seed=seed, tied=True).state_dict() for seed in (0, 1))
    for scale, right in ((0.0, original), (-1.0, finetuned)):
        found = task_vector(folders, scale)
        assert found.keys() == right.keys()
        for name in right:
            assert torch.equal(found[name], right[name]), name
    rounded = task_vector(folders, 0.0, dtype=torch.bfloat16)
    assert all(torch.equal(rounded[name], original[name].bfloat16()) for name in original)


def test_a_task_vector_goes_away_from_the_finetuned_model_in_fp32(folders):
    original, finetuned = (tiny.module(seed=seed, tied=True).state_dict() for seed in (0, 1))
    found = task_vector(folders, 5.0)
    for name in original:
        right = original[name].double() - 5 * (finetuned[name].double() - original[name].double())
        assert torch.allclose(found[name].double(), right, atol=1e-6), name


def test_a_task_vector_of_two_architectures_is_refused(folders):
    with pytest.raises(ModelError, match=r"original and model\.finetuned=.*small are not of one a"):
        task_vector(folders, 1.0, finetuned="small")
