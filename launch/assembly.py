"""From a resolved config to the objects of a run: model, engine, rows, trainer."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from framework import Benchmark, LanguageModel, Row, UnlearningTrainer, build, distributed
from framework.config import part_of
from framework.doctor.build import awaited
from framework.engine import Engine, trained
from framework.errors import ConfigError
from framework.loading import ModelSource, Pretrained, Tiny
from framework.method import layer_of, read_of_reference, reference_needed
from framework.objectives import check_parts, objectives_of
from framework.optimizers import Optimizer
from framework.parts import Selection
from framework.reference import CachedReference, FrozenReference, Reference
from framework.sampler import ForgetRetainSampler
from framework.selection import Selected, select
from framework.terminal import say
from framework.tuning import Tuning

from .outcome import references_of
from .prepare import prepared
from .rows import known_pairs, training_rows, training_texts
from .settings import is_sharded, needs_target, steps_of


@dataclass
class Assembly:
    """Everything a run needs, built."""

    benchmark: Benchmark
    model: LanguageModel
    tuning: Tuning
    engine: Engine
    trainer: UnlearningTrainer
    sampler: ForgetRetainSampler
    reference: Reference | None


def check(config: DictConfig, benchmark: Benchmark) -> None:
    """Refuse what can be refused before anything is made or loaded."""
    method, settings = part_of(config.trainer)
    reference_needed(method, settings)
    sources = list(retain_sources(config, benchmark))
    objectives = objectives_of(method.objectives, settings.retain_loss, sources)
    parts = [build(config[group]) for group in ("weighting", "perturbation", "optimizer")]
    check_parts(objectives, *parts)
    build(config.averaging)
    if build(config.selection) is not None and "forget" not in objectives:
        raise ConfigError(
            f"selection={config.selection.name} selects among the tokens to forget, but trainer="
            f"{config.trainer.name} forgets nothing; type selection=none"
        )
    if build(config.selection) is not None and method.reads_everywhere(settings):
        raise ConfigError(
            f"selection={config.selection.name} chooses tokens, but trainer={config.trainer.name} "
            "as it is set reads every position alike; type selection=none"
        )
    training_texts(config, benchmark, method)
    skeleton = build(config.tuning).apply(build(config.model).skeleton())
    method.check(settings, skeleton.config)
    optimizer: Optimizer = build(config.optimizer)
    optimizer.groups(trained(skeleton))
    ranks = distributed.intended_world_size()
    if is_sharded(config):
        from framework.zero import check_supported

        check_supported(part_of(config.zero)[1], config.precision)
        if config.zero.stage == "3" and config.benchmark.get("gradient_norm"):
            raise ConfigError(
                "benchmark.gradient_norm=true needs whole weights, of which zero=3 keeps parts; "
                "leave it out here, and measure the result: python -m launch.eval run=... "
                "benchmark.gradient_norm=true output=..."
            )
    elif ranks > 1:
        raise ConfigError(
            f"zero=none is for one process, this run has {ranks}; type zero=2 (or 1, 3)"
        )
    references_of(config, benchmark)
    if method.prefers:
        known_pairs(config, benchmark.splits()["forget"])


def check_after(config: DictConfig) -> None:
    """Refuse to go on from a run that has no result."""
    if config.after is None:
        return
    folder = Path(config.after)
    if not (folder / "model").is_dir():
        raise ConfigError(f"after={folder} holds no finished run (no model/ in it)")
    if folder.resolve() == Path(config.output).resolve():
        raise ConfigError(f"after={folder} is this run's own output; choose another output=...")


def assemble(config: DictConfig, benchmark: Benchmark, *, folder: Path) -> Assembly:
    """Build the run of `config`; made-up answers, selection and reference are kept in `folder`."""
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    method, settings = part_of(config.trainer)
    texts = training_texts(config, benchmark, method)
    sources = retain_sources(config, benchmark)
    source: ModelSource = build(config.model)
    with loading(config):
        model = load_model(config, source, benchmark, dtype=dtype)
    needed = reference_needed(method, settings)
    frozen = _frozen(config, source, benchmark, model, dtype) if needed == "frozen" else None
    tuning: Tuning = build(config.tuning)
    torch.manual_seed(config.seed)  # fresh adapters, the same on every rank and at every start
    model.module = tuning.apply(model.module)
    model.move(distributed.device())
    optimizer: Optimizer = build(config.optimizer)
    about = optimizer.about(trained(model.module))
    if about:
        say(about)
    engine: Engine = build(
        config.zero, model=model, optimizer=optimizer, precision=config.precision
    )
    model.check_packing()
    rows = training_rows(config, texts, model, folder=folder)
    for task, ids in sources.items():
        rows[f"retain/{task}"] = [row for row in rows["retain"] if row.id in ids]
    selected = selection(config, rows, model, file=folder / "selection.pt")
    if selected is not None:
        rows["forget"] = selected.rows
    objectives = objectives_of(method.objectives, settings.retain_loss, list(sources))
    sampler = ForgetRetainSampler(
        {name: rows[name] for name in objectives}, batch_size=config.batch_size, seed=config.seed
    )
    reference: Reference | None = None
    if needed == "frozen":
        reference = FrozenReference(model if frozen is None else frozen)
    elif needed == "cached":
        reference = _cached(config, model, sampler, folder)
    trainer: UnlearningTrainer = method(
        settings,
        engine=engine,
        optimizer=optimizer,
        reference=reference,
        weighting=build(config.weighting),
        perturbation=build(config.perturbation),
        averaging=build(config.averaging),
        sources=list(sources),
        seed=config.seed,
    )
    return Assembly(benchmark, model, tuning, engine, trainer, sampler, reference)


def selection(
    config: DictConfig,
    rows: dict[str, list[Row]],
    model: LanguageModel,
    *,
    file: Path | None = None,
) -> Selected | None:
    """The forget rows with the weights that the run's selection gives them; None without one."""
    chosen: Selection | None = build(config.selection)
    if chosen is None:
        return None
    return select(
        chosen,
        rows["forget"],
        rows["retain"],
        model,
        seed=config.seed,
        settings=OmegaConf.to_yaml(config.selection),
        file=file,
    )


def retain_sources(config: DictConfig, benchmark: Benchmark) -> dict[str, set[str]]:
    """The retain rows' ids by task, where each task counts by itself; else nothing."""
    if config.retain_by == "all":
        return {}
    method, settings = part_of(config.trainer)
    if set(objectives_of(method.objectives, settings.retain_loss)) != {"forget", "retain"}:
        raise ConfigError(
            f"retain_by=task is for a method that forgets and retains; trainer="
            f"{config.trainer.name} as it is set has one objective only; set retain_by=all"
        )
    by_task: dict[str, set[str]] = {}
    for example in benchmark.training_splits()["retain"]:
        by_task.setdefault(example.task, set()).add(example.id)
    if len(by_task) < 2:
        raise ConfigError(
            f"retain_by=task needs retain rows of at least two tasks; those of benchmark="
            f"{config.benchmark.name} have {sorted(by_task)}; set retain_by=all"
        )
    return dict(sorted(by_task.items()))


def load_model(
    config: DictConfig, source: ModelSource, benchmark: Benchmark, *, dtype: torch.dtype
) -> LanguageModel:
    """The model before the run: a run's result, given, made offline, or fresh for a target."""
    if config.get("after") is not None:
        return source.load(config.after, dtype=dtype)
    if isinstance(source, Pretrained):
        return source.load(source.config.path, dtype=dtype, revision=source.config.revision)
    assert isinstance(source, Tiny)
    if not needs_target(config):
        texts = [f"{x.prompt} {x.answer}" for x in benchmark.training_examples("target")]
        return source.build(texts, seed=config.seed)
    return source.load(str(prepared(config, benchmark)["target"] / "model"), dtype=dtype)


def read_model(
    config: DictConfig, source: ModelSource, path: str, *, revision: str | None = None
) -> LanguageModel:
    """A model only to read, on this process's device: whole, or under ZeRO-3 its share of it."""
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    with loading(config):
        model = source.load(path, dtype=dtype, revision=revision)
    model.move(distributed.device())
    if config.zero.get("stage") == "3":
        from framework.zero import read_partitioned  # DeepSpeed takes seconds to import

        # there is no optimizer to keep elsewhere
        settings = replace(part_of(config.zero)[1], offload="none")
        read_partitioned(model, settings, config.precision)
    model.check_packing()
    return model


@contextmanager
def loading(config: DictConfig) -> Iterator[None]:
    """Under ZeRO-3, weights are partitioned as they are read; says what DeepSpeed waits for."""
    if not is_sharded(config):
        yield
        return
    from framework.zero import partitioned_loading  # DeepSpeed takes seconds to import

    for line in awaited(on_gpu=torch.cuda.is_available()):
        say(line)
    with partitioned_loading(part_of(config.zero)[1], config.precision):
        yield


def shared_reference(config: DictConfig) -> Path:
    """Where runs find what others read of the same model before unlearning."""
    return Path(config.cache).expanduser() / "reference"


def _cached(
    config: DictConfig, model: LanguageModel, sampler: ForgetRetainSampler, folder: Path
) -> CachedReference:
    """What the losses will read of the model before unlearning, of all rows that will be drawn."""
    method, settings = part_of(config.trainer)
    drawn = sampler.drawn(steps_of(config, sampler.steps_per_epoch))
    return CachedReference.build(
        model,
        read_of_reference(method, settings, drawn),
        layer=layer_of(settings, model.module.config),
        folder=folder / "reference",
        cache=shared_reference(config),
    )


def _frozen(
    config: DictConfig,
    source: ModelSource,
    benchmark: Benchmark,
    model: LanguageModel,
    dtype: torch.dtype,
) -> LanguageModel | None:
    """A second, frozen model; None with LoRA, whose reference is itself with its adapters off."""
    if config.tuning.name == "lora":
        return None
    if config.zero.get("stage") == "3":
        twin = load_model(config, source, benchmark, dtype=dtype)
    else:
        twin = source.wrap(copy.deepcopy(model.module), model.tokenizer)
    twin.module.requires_grad_(False)
    twin.move(distributed.device())
    twin.check_packing()
    return twin
