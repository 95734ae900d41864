"""Load models and datasets as auto-circuit's scripts do."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Subset

from circuit_trace.errors import InputError

from ..models import BUNDLED, available_kinds, load_model
from ..transformer_lens import is_a
from .data import (
    PromptDataLoader,
    PromptDataset,
    first_difference,
)

_FIELDS = ("clean", "corrupt", "answers", "wrong_answers")


def load_tl_model(name: str, device: torch.device | str) -> Any:
    """Load a model by the name that TransformerLens knows it by, its weights not to be trained.

    A HookedTransformer where the installed TransformerLens has that class, else a TransformerBridge
    with the same processing of its weights. No hook flag is set: none is needed.

    >>> load_tl_model("bundled", "cpu").cfg.n_layers
    2

    Raises:
        InputError: There is no model of this name, or the hub cannot be reached.
    """
    model: Any = load_model(name)
    if name != BUNDLED and available_kinds()[0] == "bridge":
        model.enable_compatibility_mode(disable_warnings=True)
    if torch.device(model.cfg.device) != torch.device(device):
        model.to(device)  # a HookedTransformer announces each move in print
    return model.eval().requires_grad_(False)


def repo_path_to_abs_path(path: str | Path) -> Path:
    """A path in the working directory, made absolute."""
    return Path.cwd() / path


def load_datasets_from_json(
    model: nn.Module | None,
    path: Path | str | Sequence[Path | str],
    device: torch.device | str,
    prepend_bos: bool = True,
    batch_size: int | tuple[int, int] = 32,
    train_test_size: tuple[int, int] = (128, 128),
    return_seq_length: bool = False,
    tail_divergence: bool = False,
    shuffle: bool = True,
    random_seed: int = 42,
    pad: bool = True,
) -> tuple[PromptDataLoader, PromptDataLoader]:
    """Load clean and corrupt prompts with their answers, as a train and a test set.

    The file holds `{"prompts": [{"clean", "corrupt", "answers", "wrong_answers"}, …]}`, texts or, with
    `model=None`, lists of token ids; and, if wanted, "seq_labels" and "word_idxs".

    Args:
        model: The model whose tokenizer is used, None for token ids.
        path: The file; of further ones the prompts alone are read.
        device: Where the tokens lie.
        prepend_bos: Put the BOS token before every prompt. Nothing else puts one there.
        batch_size: How many prompts a batch has, (train, test) where they differ.
        train_test_size: How many prompts are for training and for testing.
        return_seq_length: Note the prompts' length, which must be the same for all, as `seq_len`.
        tail_divergence: Run what all prompts have in common, before any clean prompt differs from
            its corrupt one, once: it is cut off, and its keys and values are in `kv_cache`.
        shuffle: Shuffle the prompts before they are divided; never afterwards.
        random_seed: The seed of that order.
        pad: Fill up shorter prompts on the left. The tokenizer pads on the left from then on, by
            which a HookedTransformer knows padding from text.

    Raises:
        InputError: The file does not hold that, or asks for what this model cannot do.
    """
    if model is None and (prepend_bos or tail_divergence):
        raise InputError(
            "Without a model there is no tokenizer and no cache: pass prepend_bos=False and "
            "tail_divergence=False, or a model."
        )
    data = _read([path] if isinstance(path, str | Path) else list(path))
    if shuffle:
        random.Random(random_seed).shuffle(data["prompts"])
    n_train, n_test = train_test_size
    pairs = data["prompts"][: n_train + n_test]
    if len(pairs) < n_train + n_test:
        raise InputError(
            f"train_test_size asks for {n_train} + {n_test} prompts, but there are {len(pairs)}."
        )
    columns = _Columns.of(model, pairs, device, prepend_bos, pad, return_seq_length)
    labels, words = data.get("seq_labels"), data.get("word_idxs", {})
    if prepend_bos:
        labels = None if labels is None else ["<|BOS|>", *labels]
        words = {word: at + 1 for word, at in words.items()}
    sizes = batch_size if isinstance(batch_size, tuple) else (batch_size, batch_size)
    n_cut, caches = 0, (None, None)
    if tail_divergence:
        n_cut, caches = columns.prefix(model, sizes)
    dataset = columns.dataset(n_cut)
    parts = (range(n_train), range(n_train, n_train + n_test))
    train, test = (
        PromptDataLoader(
            Subset(dataset, part),
            seq_len=None if columns.seq_len is None else columns.seq_len - n_cut,
            diverge_idx=n_cut,
            kv_cache=cache,
            seq_labels=None if labels is None else labels[n_cut:],
            word_idxs=words,
            batch_size=size,
            shuffle=False,
        )
        for part, cache, size in zip(parts, caches, sizes, strict=True)
    )
    return train, test


def _read(paths: list[Any]) -> dict[str, Any]:
    """The first file, with the prompts of all."""
    if not paths:
        raise InputError("path names no file.")
    files = [_read_one(Path(path)) for path in paths]
    return {**files[0], "prompts": [pair for one in files for pair in one["prompts"]]}


def _read_one(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"The dataset {path} cannot be read: {error}.") from error
    pairs = data.get("prompts") if isinstance(data, dict) else None
    if not isinstance(pairs, list):
        raise InputError(f'The dataset {path} must hold {{"prompts": [...]}}.')
    for number, pair in enumerate(pairs):
        missing = (
            [name for name in _FIELDS if name not in pair] if isinstance(pair, dict) else _FIELDS
        )
        if missing:
            raise InputError(f"Prompt {number} of {path} lacks {', '.join(missing)}.")
    return data


@dataclass(frozen=True, eq=False)
class _Columns:
    """The tokens of a dataset."""

    clean: Any
    corrupt: Any
    answers: Any
    wrong_answers: Any
    seq_len: int | None

    @classmethod
    def of(
        cls,
        model: Any,
        pairs: list[dict[str, Any]],
        device: torch.device | str,
        prepend_bos: bool,
        pad: bool,
        same_length: bool,
    ) -> _Columns:
        columns = [[pair[name] for pair in pairs] for name in _FIELDS]
        if model is None:
            tokens = [[torch.tensor(row, device=device) for row in column] for column in columns]
            return cls(*tokens, seq_len=len(tokens[0][0]) if pairs else None)
        tokenizer = model.tokenizer
        if tokenizer is None:
            raise InputError("The model has no tokenizer: give token ids, and model=None.")
        if is_a(_unwrapped(model), "HookedTransformer"):
            tokenizer.padding_side = "left"
        start = tokenizer.bos_token if prepend_bos else ""
        prompts = [
            _tokenized(model, [start + text for text in column], pad and not same_length)
            for column in columns[:2]
        ]
        answers = [[_answer(tokenizer, row).to(device) for row in column] for column in columns[2:]]
        n = prompts[0].shape[1]
        return cls(*(p.to(device) for p in prompts), *answers, seq_len=n if same_length else None)

    def dataset(self, n_cut: int) -> PromptDataset:
        """The prompts less their first tokens, as a dataset."""
        clean, corrupt = (
            [row[n_cut:] for row in rows] if n_cut else rows for rows in (self.clean, self.corrupt)
        )
        return PromptDataset(clean, corrupt, self.answers, self.wrong_answers)

    def prefix(self, model: Any, sizes: tuple[int, int]) -> tuple[int, tuple[Any, Any]]:
        """What all prompts begin with: its length, and caches of it for batches of two sizes."""
        n_cut = first_difference(self.clean, self.corrupt)
        if n_cut == 0:
            return 0, (None, None)
        hooked = _unwrapped(model)
        if not is_a(hooked, "HookedTransformer"):
            raise InputError(
                f"tail_divergence=True keeps a prefix in HookedTransformer's cache; this is a "
                f"{type(hooked).__name__}. Leave it out: what is patched in from a corrupt prompt "
                "leaves a shared prefix as it is, so the outputs are the same."
            )
        if (self.clean[:, :n_cut] != self.clean[0, :n_cut]).any():
            raise InputError(
                f"tail_divergence=True cuts off the {n_cut} tokens before any clean prompt differs "
                "from its corrupt one, but not all prompts begin with the same ones: one cache "
                "cannot stand for all. Leave it out."
            )
        first = self.clean[:1, :n_cut]
        caches = {size: _cache(hooked, first.expand(size, n_cut)) for size in sizes}
        return n_cut, (caches[sizes[0]], caches[sizes[1]])


def _cache(model: Any, prefix: Tensor) -> Any:
    """The keys and values of a prefix, which passes read and do not extend."""
    import transformer_lens

    # 3.x has renamed the class.
    names = ("TransformerLensKeyValueCache", "HookedTransformerKeyValueCache")
    kind = next(
        getattr(transformer_lens, name) for name in names if hasattr(transformer_lens, name)
    )
    cache = kind.init_cache(model.cfg, prefix.device, len(prefix))
    with torch.no_grad():
        model(prefix, past_kv_cache=cache, return_type=None)
    cache.freeze()
    return cache


def _unwrapped(model: Any) -> Any:
    return getattr(model, "wrapped_model", model)


def _tokenized(model: Any, texts: list[str], pad: bool) -> Tensor:
    """Texts as tokens `[n_texts, seq]`, filled up on the left where they may be."""
    if not texts:
        return torch.empty((0, 0), dtype=torch.long)
    tokenizer = model.tokenizer
    rows: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    lengths = sorted({len(row) for row in rows})
    if len(lengths) == 1:
        return torch.tensor(rows)
    if not pad or tokenizer.pad_token_id is None:
        raise InputError(
            f"The prompts have {lengths[0]} to {lengths[-1]} tokens. return_seq_length=True and "
            "pad=False need prompts of one length, and padding a tokenizer with a pad_token."
        )
    if not is_a(_unwrapped(model), "HookedTransformer"):
        raise InputError(
            f"The prompts have {lengths[0]} to {lengths[-1]} tokens and would be padded on the left, "
            f"but a {type(_unwrapped(model)).__name__} reads padding like text where no "
            "attention_mask tells it. Use prompts of one length."
        )
    return torch.tensor([[tokenizer.pad_token_id] * (lengths[-1] - len(row)) + row for row in rows])


def _answer(tokenizer: Any, texts: Any) -> Tensor:
    """The tokens of a prompt's answers, `[n_answers]` where each is one token."""
    texts = [texts] if isinstance(texts, str) else texts
    if not texts or not all(isinstance(text, str) for text in texts):
        raise InputError(
            f"Answers must be texts where a model's tokenizer reads them; got {texts!r}."
        )
    rows = tokenizer(texts, add_special_tokens=False)["input_ids"]
    if len({len(row) for row in rows}) > 1:
        raise InputError(
            f"The answers {texts!r} have {[len(row) for row in rows]} tokens: those of one prompt must "
            "have the same number (a space at the start counts)."
        )
    return torch.tensor(rows).squeeze(-1)
