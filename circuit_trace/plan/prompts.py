"""Prompts as a model runs them: token ids, and which of them are padding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor
from torch.nn.functional import pad

from circuit_trace.anatomy import Anatomy
from circuit_trace.errors import InputError

MASK = "attention_mask"
"""The argument of a forward pass that says where a token is (1) and where padding (0)."""


@dataclass(frozen=True, eq=False)
class Prompts:
    """A batch of prompts ready to run, `model(prompts.tokens, **prompts.forward)`.

    `real` says which positions hold a token of the prompt; the others are padding, which counts for
    nothing. It is None where there is no padding. `arguments` are the other arguments of the pass.
    """

    tokens: Shaped[Tensor, "batch seq *input"]
    real: Bool[Tensor, "batch seq"] | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.tokens.shape[0]

    @property
    def forward(self) -> dict[str, Any]:
        """The arguments of a forward pass beside the tokens, the attention mask among them."""
        mask = {} if self.real is None else {MASK: self.real.long()}
        return {**self.arguments, **mask}

    def repeated(self, times: int) -> Prompts:
        """So many copies of the batch, one after the other.

        Raises:
            InputError: An argument of the pass cannot be repeated.
        """
        arguments = {
            name: _repeated(name, value, len(self), times) for name, value in self.arguments.items()
        }
        tokens = self.tokens.repeat(times, *[1] * (self.tokens.ndim - 1))
        return Prompts(tokens, None if self.real is None else self.real.repeat(times, 1), arguments)

    def padded_to(self, seq: int, token: int) -> Prompts:
        """The same with padding before it, so that positions are aligned from the end."""
        n = seq - self.tokens.shape[1]
        if n == 0:
            return self
        real = torch.ones_like(self.tokens, dtype=torch.bool) if self.real is None else self.real
        return replace(self, tokens=pad(self.tokens, (n, 0), value=token), real=pad(real, (n, 0)))


def last_positions(
    real: Bool[Tensor, "batch seq"] | None, tokens: Shaped[Tensor, "batch seq *input"]
) -> Int[Tensor, " batch"]:
    """The position of each prompt's last token, behind which there is padding or nothing.

    >>> mask = torch.tensor([[0, 1, 1, 1], [1, 1, 0, 0]]).bool()
    >>> last_positions(mask, torch.zeros(2, 4)).tolist()
    [3, 1]
    """
    batch, seq = tokens.shape[:2]
    if real is None:
        return torch.full((batch,), seq - 1, device=tokens.device)
    return seq - 1 - real.flip(1).long().argmax(1)


def is_text(given: Any) -> bool:
    """Whether it is a prompt as text, or a list of some."""
    return isinstance(given, str) or (
        isinstance(given, list | tuple)
        and len(given) > 0
        and all(isinstance(one, str) for one in given)
    )


def read_prompts(anatomy: Anatomy, given: Any, mask: Any = None) -> Prompts:
    """Prompts that a model can run: a string, a list of strings, or token ids `[batch, seq]`.

    Texts of unequal length are padded at the left and masked, so that positions are aligned from the
    end. Tokens that were padded by somebody else, on either side, come with their attention mask.

    Raises:
        InputError: They are none that this model can run, or the mask does not fit them.
    """
    if isinstance(given, Prompts):
        return given
    if is_text(given):
        if mask is not None:
            raise InputError(
                "An attention_mask belongs to token ids, but these prompts are text, which is padded "
                "and masked as it is tokenized. Leave the mask out, or pass token ids [batch, seq]."
            )
        return _tokenized(anatomy, [given] if isinstance(given, str) else given)
    if not isinstance(given, Tensor):
        raise InputError(
            f"Expected token ids as a tensor [batch, seq], a string or a list of strings; got "
            f"{type(given).__name__}."
        )
    tokens = _checked(anatomy, given)
    return Prompts(tokens, None if mask is None else read_mask(mask, tokens))


def read_mask(mask: Any, tokens: Shaped[Tensor, "batch seq *input"]) -> Bool[Tensor, "batch seq"]:
    """An attention mask as what it says: where there is a token, and where padding.

    Raises:
        InputError: It is none for these tokens.
    """
    batch, seq = tokens.shape[:2]
    shape = tuple(mask.shape) if isinstance(mask, Tensor) else ()
    if shape not in ((batch, seq), (1, seq), (seq,)):
        got = f"the shape {shape}" if shape else repr(mask)
        raise InputError(
            f"attention_mask must be a tensor [batch, seq] = [{batch}, {seq}] of 1 for tokens and 0 "
            f"for padding; got {got}."
        )
    real = (mask != 0).expand(batch, seq).to(tokens.device)
    if ((mask != 0) & (mask != 1)).any():
        raise InputError(
            f"attention_mask must hold 1 for tokens and 0 for padding; got values from "
            f"{mask.min().item():g} to {mask.max().item():g}."
        )
    starts = (real & ~pad(real[:, :-1], (1, 0))).sum(1)
    if (starts != 1).any():
        prompt = int((starts != 1).nonzero()[0])
        what = "has no token at all" if starts[prompt] == 0 else "has padding between its tokens"
        raise InputError(
            f"By the attention_mask prompt {prompt} {what}: {real[prompt].long().tolist()}. A prompt "
            "is one run of tokens, with padding before or behind it."
        )
    return real


def read_arguments(forward: Any) -> dict[str, Any]:
    """More arguments of the forward pass, by name.

    Raises:
        InputError: They are none.
    """
    if forward is None:
        return {}
    if not isinstance(forward, Mapping) or not all(isinstance(name, str) for name in forward):
        raise InputError(
            "forward must map names of the model's forward arguments to values, such as "
            f'{{"attention_mask": mask}}, or be a function of the batch that returns such a mapping '
            f"where data comes in batches; got {forward!r}."
        )
    return dict(forward)


def _tokenized(anatomy: Anatomy, texts: list[str] | tuple[str, ...]) -> Prompts:
    if anatomy.to_tokens is None:
        raise InputError(
            "Got text, but the wrapped model has no tokenizer: pass token ids [batch, seq]."
        )
    rows = [Prompts(_checked(anatomy, anatomy.to_tokens(text))) for text in texts]
    seq = max(row.tokens.shape[1] for row in rows)
    if all(row.tokens.shape[1] == seq for row in rows):
        return Prompts(torch.cat([row.tokens for row in rows]))
    rows = [row.padded_to(seq, anatomy.pad_token) for row in rows]
    real = [torch.ones_like(row.tokens).bool() if row.real is None else row.real for row in rows]
    return Prompts(torch.cat([row.tokens for row in rows]), torch.cat(real))


def _checked(anatomy: Anatomy, tokens: Tensor) -> Tensor:
    """Token ids that the model can run; the input of a model without tokens as it is."""
    if tokens.numel() == 0:
        raise InputError(
            f"There is nothing to run: the tokens have the shape {tuple(tokens.shape)}."
        )
    if anatomy.tokens is None:
        return tokens
    if tokens.dtype not in (torch.int32, torch.int64) or tokens.ndim not in (1, 2):
        raise InputError(
            f"Expected token ids as whole numbers (int64) [batch, seq]; got {tokens.dtype} of "
            f"the shape {tuple(tokens.shape)}."
        )
    tokens = tokens if tokens.ndim == 2 else tokens[None]
    d_vocab = getattr(anatomy.cfg, "d_vocab", None) or float("inf")
    n_ctx = getattr(anatomy.cfg, "n_ctx", None) or float("inf")
    low, high = (int(end) for end in torch.aminmax(tokens))
    if low < 0 or high >= d_vocab:
        raise InputError(
            f"The token ids run from {low} to {high}; this model knows 0 to {d_vocab - 1}."
        )
    if tokens.shape[1] > n_ctx:
        raise InputError(
            f"The prompt has {tokens.shape[1]} tokens; this model's context is {n_ctx}."
        )
    return tokens


def _repeated(name: str, value: Any, batch: int, times: int) -> Any:
    if isinstance(value, Tensor):
        # What has no row for each prompt is the same for all of them.
        is_by_prompt = value.ndim > 0 and value.shape[0] == batch
        return value.repeat(times, *[1] * (value.ndim - 1)) if is_by_prompt else value
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise InputError(
        f"Many edges are patched in one pass, with a copy of the prompts for each, but the argument "
        f"{name!r} of forward= is a {type(value).__name__}, which cannot be copied so. Use a gradient "
        "method, or leave it out."
    )
