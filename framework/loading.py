"""Where a model comes from: a checkpoint by path or hub name, or a tiny one made offline."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from huggingface_hub import is_offline_mode
from safetensors import SafetensorError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers.utils.hub import cached_file
from transformers.utils.logging import disable_progress_bar

from .distributed import launcher_rank
from .errors import ConfigError, ModelError
from .language_model import LanguageModel
from .prompt_format import PromptFormat
from .recomputation import Recomputed, recompute
from .terminal import say

FEWEST_TOKENS = 256 + 3
TOKENS_PER_MICRO_BATCH = 4096
"""Where nothing tells how many fit."""


class ModelSource:
    """What every model has, wherever it comes from."""

    @dataclass
    class Config:
        """How the model reads."""

        max_length: int = 512
        """Tokens of the longest row; longer ones lose the left of their prompt."""
        tokens_per_micro_batch: int | Literal["auto"] = "auto"
        """Tokens of one forward pass on one rank: more is faster and needs more memory. auto: 4096;
        where a run trains on a GPU, twice that as often as fits, up to a whole step."""
        generation_memory: float = 8.0
        """GiB that the keys and values of one batch of answers take at most, > 0: more is
        faster."""
        prompt_format: PromptFormat = field(default_factory=PromptFormat)
        """How a prompt is written before it is tokenized: plain, or the chat template."""
        trust_remote_code: bool = False
        """Run the Python files that come with the model, if its architecture needs them."""
        gradient_checkpointing: Recomputed | Literal["auto"] = "auto"
        """Activations are computed again in the backward pass; true: all within decoder blocks,
        selective (a word of arXiv:2205.05198): all but the results of matrix products and of
        attention, which takes little time. auto: what of these a run that trains on a GPU needs
        to fit."""

    def __init__(self, config: Config) -> None:
        """Raise ConfigError for values out of range."""
        for name in ("max_length", "tokens_per_micro_batch"):
            given = getattr(config, name)
            if given != "auto" and given < 2:
                raise ConfigError(f"model.{name} must be at least 2, got {given}")
        if not 0 < config.generation_memory < math.inf:
            raise ConfigError(
                "model.generation_memory must be a number of GiB above 0, got "
                f"{config.generation_memory:g}"
            )
        self.config = config

    def load(self, path: str, *, dtype: torch.dtype, revision: str | None = None) -> LanguageModel:
        """The model and tokenizer at `path`, a folder, a run or a hub name, on the CPU."""
        path = model_folder(path)
        check_there(path, revision)
        trusted = self.config.trust_remote_code
        where = self.tokenizer_at(path)
        own = revision if where == path else None
        tokenizer = load_tokenizer(where, own, trust_remote_code=trusted)
        disable_progress_bar()  # of loading and saving: seconds of work, a line each in a log
        try:
            loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
                path,
                config=self.shape_at(path, revision),
                revision=revision,
                trust_remote_code=trusted,
                dtype=dtype,
                attn_implementation="sdpa",
                output_loading_info=True,
            )
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise ModelError(_cannot_load("model", path, error)) from error
        module, found = loaded
        missing = sorted(found["missing_keys"])
        if missing:  # transformers warns and makes them up
            raise ModelError(
                f"the weights at {path!r} lack {len(missing)} of the model's, such as "
                f"{missing[0]}: they are of another kind of model, or incomplete"
            )
        return self.wrap(module, tokenizer)

    def tokenizer_at(self, path: str) -> str:
        """Where the tokenizer of the model at `path` is: with it."""
        return path

    def shape_at(self, path: str, revision: str | None) -> transformers.PretrainedConfig:
        """The transformers config of the model at `path`."""
        try:
            shape: transformers.PretrainedConfig = transformers.AutoConfig.from_pretrained(
                path, revision=revision, trust_remote_code=self.config.trust_remote_code
            )
        except (OSError, ValueError) as error:
            raise ModelError(_cannot_load("model", path, error)) from error
        return shape

    def wrap(
        self, module: transformers.PreTrainedModel, tokenizer: transformers.PreTrainedTokenizerBase
    ) -> LanguageModel:
        """`module` as a LanguageModel with this source's settings."""
        positions = getattr(module.config, "max_position_embeddings", None)
        if positions is not None and positions < self.config.max_length:
            raise ModelError(
                f"model.max_length={self.config.max_length} is more than the {positions} positions "
                f"that the model knows; type model.max_length={positions}"
            )
        if self.config.gradient_checkpointing in (True, "selective"):
            recompute(module, self.config.gradient_checkpointing)
        tokens = self.config.tokens_per_micro_batch
        return LanguageModel(
            module,
            tokenizer,
            prompt_format=self.config.prompt_format,
            max_length=self.config.max_length,
            tokens_per_micro_batch=TOKENS_PER_MICRO_BATCH if tokens == "auto" else tokens,
            generation_memory=self.config.generation_memory,
        )


class Pretrained(ModelSource):
    """A transformers causal language model by folder or hub name."""

    @dataclass
    class Config(ModelSource.Config):
        """Which model."""

        path: str = ""
        """A folder, a run, or a name on the hub."""
        revision: str | None = None
        tokenizer: str | None = None
        """A folder or hub name, where it does not lie with the weights; null: it does."""
        layers: int | None = None
        """Only the model's first so many decoder blocks, for a small assistant; null: all."""

    config: Config

    def __init__(self, config: Config) -> None:
        """Raise ConfigError when no path is given."""
        super().__init__(config)
        if not config.path:
            raise ConfigError("model.path is empty; type model.path=<folder or hub name>")

    def tokenizer_at(self, path: str) -> str:
        """See `ModelSource.tokenizer_at`: elsewhere where `tokenizer` says so."""
        return path if self.config.tokenizer is None else self.config.tokenizer

    def shape_at(self, path: str, revision: str | None) -> transformers.PretrainedConfig:
        """See `ModelSource.shape_at`: cut to the first blocks where `layers` says so."""
        shape = super().shape_at(path, revision)
        layers = self.config.layers
        if layers is None:
            return shape
        blocks = shape.get_text_config()
        if not 1 <= layers <= blocks.num_hidden_layers:
            raise ConfigError(
                f"model.layers must be from 1 to {blocks.num_hidden_layers}, the decoder blocks of "
                f"{path}, or null, got {layers}"
            )
        blocks.num_hidden_layers = layers
        kinds: list[str] | None = getattr(blocks, "layer_types", None)  # of each block's attention
        if kinds is not None:
            blocks.layer_types = kinds[:layers]
        return shape

    def skeleton(self) -> transformers.PreTrainedModel:
        """The model on the meta device: its shape, no weights."""
        path = model_folder(self.config.path)
        check_there(path, self.config.revision)
        settings = self.shape_at(path, self.config.revision)
        with torch.device("meta"):
            module: transformers.PreTrainedModel = transformers.AutoModelForCausalLM.from_config(
                settings, trust_remote_code=self.config.trust_remote_code
            )
        return module


class Tiny(ModelSource):
    """A Llama of half a million to a few million parameters with a tokenizer of its own text.

    It knows nothing until it is fine-tuned on a benchmark: `launch` makes the target model (all
    rows) and the gold model (all but the forget rows) from it once and keeps them.
    """

    @dataclass
    class Config(ModelSource.Config):
        """Its size."""

        hidden_size: int = 96
        layers: int = 2
        heads: int = 4
        intermediate_size: int = 384
        vocabulary: int = 1024
        """Tokens of the byte-pair tokenizer, >= 259."""

    config: Config

    def __init__(self, config: Config) -> None:
        """Raise ConfigError for sizes that make no model."""
        super().__init__(config)
        for name in ("hidden_size", "layers", "heads", "intermediate_size"):
            if getattr(config, name) < 1:
                raise ConfigError(f"model.{name} must be at least 1, got {getattr(config, name)}")
        if config.hidden_size % (2 * config.heads):
            raise ConfigError(
                f"model.hidden_size={config.hidden_size} must be an even multiple of "
                f"model.heads={config.heads}"
            )
        if config.vocabulary < FEWEST_TOKENS:
            raise ConfigError(
                f"model.vocabulary must be at least {FEWEST_TOKENS} (every byte, and the special "
                f"tokens), got {config.vocabulary}"
            )

    def skeleton(self) -> transformers.PreTrainedModel:
        """The model on the meta device: its shape, no weights."""
        with torch.device("meta"):
            return transformers.LlamaForCausalLM(self._settings(self.config.vocabulary))

    def build(self, texts: Iterable[str], *, seed: int) -> LanguageModel:
        """Fresh weights and a tokenizer trained on `texts`; the same for the same arguments."""
        return self.fresh(train_tokenizer(texts, vocabulary=self.config.vocabulary), seed=seed)

    def fresh(self, tokenizer: transformers.PreTrainedTokenizerBase, *, seed: int) -> LanguageModel:
        """Fresh weights for a tokenizer that is there already, of any model."""
        disable_progress_bar()
        special = {
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        }
        vocabulary = max(len(tokenizer), *(i + 1 for i in tokenizer.get_vocab().values()))
        settings = self._settings(vocabulary)
        settings.update(special)
        torch.manual_seed(seed)
        module = transformers.LlamaForCausalLM(settings)
        module.generation_config = transformers.GenerationConfig(**special)
        return self.wrap(module, tokenizer)

    def _settings(self, vocabulary: int) -> transformers.LlamaConfig:
        config = self.config
        return transformers.LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.heads,
            max_position_embeddings=2 * config.max_length,
            tie_word_embeddings=True,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )


def train_tokenizer(
    texts: Iterable[str], *, vocabulary: int
) -> transformers.PreTrainedTokenizerFast:
    """A byte-pair tokenizer of `texts`, digits one by one; special tokens 0, 1, 2."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    inner.decoder = decoders.ByteLevel()
    inner.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=["<pad>", "<bos>", "<eos>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    )


def model_folder(path: str) -> str:
    """The model in a run's folder; any other path as it is."""
    inside = Path(path) / "model"
    return str(inside) if (inside / "config.json").is_file() else path


def check_there(path: str, revision: str | None = None) -> None:
    """Refuse what looks like a folder here and is none, before minutes of asking the hub."""
    if Path(path).exists() or files_of(path, revision) is not None:
        return
    parts = Path(path).parts
    if len(parts) > 1 and Path(parts[0]).is_dir():
        raise ModelError(
            f"there is no folder {path!r}; {parts[0]!r} is a folder here, so the hub is not asked"
        )
    if launcher_rank() == 0 and not is_offline_mode():  # the processes have not met
        say(f"{path} is not on this machine: asking the hub for it")


def files_of(path: str, revision: str | None = None) -> Path | None:
    """The folder of a model's files: a folder, a run's model, or the hub's copy on this machine."""
    local = Path(model_folder(path))
    if (local / "config.json").is_file():
        return local
    try:
        found = cached_file(path, "config.json", revision=revision, local_files_only=True)
    except (OSError, ValueError):  # no model of that name, or not on this machine
        return None
    return None if found is None else Path(found).parent


def load_tokenizer(
    path: str, revision: str | None = None, *, trust_remote_code: bool = False
) -> transformers.PreTrainedTokenizerBase:
    """The tokenizer at `path`; raises ModelError when there is none or it cannot end a text."""
    try:
        tokenizer: transformers.PreTrainedTokenizerBase = (
            transformers.AutoTokenizer.from_pretrained(
                path, revision=revision, trust_remote_code=trust_remote_code
            )
        )
    except (OSError, ValueError) as error:
        raise ModelError(_cannot_load("tokenizer", path, error)) from error
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"the tokenizer at {path} has no EOS token, so an answer cannot end; set eos_token in "
            "its tokenizer_config.json"
        )
    return tokenizer


def _cannot_load(what: str, path: str, error: Exception) -> str:
    reason = str(error).strip().splitlines()[0]
    if "ignore_mismatched_sizes" in reason:
        reason = "its weights have other shapes than its config.json says"
    if "trust_remote_code" in str(error):
        reason = "it needs Python code of its own; type model.trust_remote_code=true to run that"
    kind = "folder" if Path(path).exists() else "folder or reachable hub name"
    return f"no {what} could be loaded from {path!r} ({kind}): {reason}"
