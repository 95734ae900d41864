"""A batch of prompt pairs made ready for patching: what every source wrote, what is patched in, and
the metric of the clean prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from circuit_trace.engine import Engine
from circuit_trace.errors import InputError
from circuit_trace.hooks import Session
from circuit_trace.plan import (
    AblationType,
    PromptPairs,
    Prompts,
    PruneScores,
    SourceOutputs,
    make_plan,
)
from circuit_trace.score.metrics import PerPrompt


@dataclass(frozen=True, eq=False)
class PairRun:
    """A batch of prompt pairs and its clean pass; `clean` is the metric of it, a number a prompt."""

    model: Engine
    pairs: PromptPairs
    metric: PerPrompt
    current: SourceOutputs
    patched: SourceOutputs
    clean_logits: Tensor
    clean: Float[Tensor, " batch"]

    def __len__(self) -> int:
        return len(self.pairs)

    @cached_property
    def _filled(self) -> SourceOutputs:
        return self.patched.filled(self.current.sites)

    def differences(self, sources: Sequence[int]) -> Float[Tensor, "source batch pos d_model"]:
        """Patched less current, of the sources with these places among all."""
        by_site: dict[int, list[int]] = {}
        for source in sources:
            by_site.setdefault(self.model.srcs[source].site, []).append(source)
        found: dict[int, Tensor] = {}
        for site, here in by_site.items():
            slots = [self.model.srcs[source].slot for source in here]
            now = self.current.sites[site].project(slots)
            found.update(
                zip(here, self._filled.sites[site].project(slots).to(now) - now, strict=True)
            )
        device = self.current.sites[0].code.device
        return torch.stack([found[source].to(device) for source in sources])

    def metrics_of(self, logits: Tensor) -> Float[Tensor, "copy batch"]:
        """The metric of every prompt in logits of one or more copies of the batch, one after the
        other; a copy at a time, since a metric may be a mean over its batch."""
        copies = logits.split(len(self))
        values = [self.metric(copy, self.pairs, self.clean_logits) for copy in copies]
        return torch.stack(values).detach().double().cpu()

    def masked(self, masks: PruneScores) -> Float[Tensor, " batch"]:
        """The metric of every prompt in one pass with these masks."""
        prompts = self.pairs.clean_prompts
        return self.metrics_of(masked_logits(self.model, prompts, self.patched, masks))[0]


def run_pairs(
    model: Engine,
    pairs: PromptPairs,
    metric: PerPrompt,
    *,
    ablation: AblationType = AblationType.RESAMPLE,
    patched: SourceOutputs | None = None,
) -> PairRun:
    """Run a batch's clean prompts and find what is patched into them.

    Raises:
        InputError: What is to be patched in is missing or does not fit, a patch is open, or the
            metric of a clean prompt is not finite.
    """
    if model.has_open_patch:
        raise InputError(
            "A patch is open on this model, so the clean pass would not be clean. Close it first."
        )
    record = model.run_plain(pairs.clean_prompts)
    batch, seq = record.outputs[0].code.shape[:2]
    if model.seq_len not in (None, seq):
        raise InputError(
            f"The model was wrapped with seq_len={model.seq_len}, but these prompts have {seq} "
            f"tokens. Wrap it with seq_len={seq}, or without positions."
        )
    if record.logits is None:
        raise InputError("The model returned no logits, so no metric can be computed from them.")
    own = SourceOutputs(model.srcs, tuple(record.outputs), batch, seq)
    other = patched_in(model, pairs, ablation, patched)
    pairs.warn_of_twins(record.logits)
    clean = metric(record.logits, pairs, record.logits).detach().double().cpu()
    if not clean.isfinite().all():
        prompt = int((~clean.isfinite()).nonzero()[0])
        raise InputError(
            f"The metric of clean prompt {prompt} is {clean[prompt].item()} without any patch: "
            "expected a finite number."
        )
    return PairRun(model, pairs, metric, own, other, record.logits, clean)


def patched_in(
    model: Engine,
    pairs: PromptPairs,
    ablation: AblationType,
    patched: SourceOutputs | None,
) -> SourceOutputs:
    """What is patched into a batch, of its shape: what is given, or what its corrupt prompts give;
    where there are none, what an ablation makes of the clean ones.

    Raises:
        InputError: There is neither.
    """
    shape = pairs.clean.shape[:2]
    if patched is not None:
        return patched.fitted(*shape).within(pairs.attention_mask)
    if ablation is AblationType.RESAMPLE and pairs.corrupt is None:
        raise InputError(
            "There is nothing to patch in: give corrupt prompts, (clean, corrupt), or an ablation "
            "that needs none, such as ablation=ct.AblationType.ZERO."
        )
    found = model.source_outputs(pairs.other_prompts, ablation)
    return found.fitted(*shape).within(pairs.attention_mask)


def check_patched(model: Engine, ablation: Any, patched: Any) -> None:
    """Check what is to be patched in, before anything runs.

    Raises:
        InputError: It is none, of another model, or a mean over a dataset that is still to be made.
    """
    if patched is not None:
        make_plan(model.graph, patched, None, None)
        if ablation is not AblationType.RESAMPLE:
            raise InputError(
                "Give either ablation= or patched=, not both: each says what is patched in."
            )
    if not isinstance(ablation, AblationType):
        raise InputError(
            f"ablation must be an AblationType ({', '.join(a.name for a in AblationType)}); got "
            f"{ablation!r}."
        )
    if patched is None and ablation.mean_over_dataset:
        raise InputError(
            f"{ablation.name} is a mean over a whole dataset. Compute it once and pass it: "
            f"patched=model.source_outputs(data, ct.AblationType.{ablation.name})."
        )


def is_resampled(ablation: AblationType, patched: SourceOutputs | None) -> bool:
    """Whether each batch's corrupt prompts are patched into its clean ones."""
    return patched is None and ablation is AblationType.RESAMPLE


def dtype_of_scores(model: Engine) -> torch.dtype:
    """That of the model's weights, in float32 or wider."""
    kinds = (p.dtype for p in model.wrapped_model.parameters() if p.is_floating_point())
    return torch.promote_types(next(kinds, torch.float32), torch.float32)


def masked_logits(
    model: Engine, prompts: Prompts, patched: SourceOutputs, masks: PruneScores
) -> Tensor:
    """The logits of one pass with these masks, which leaves no record behind.

    Raises:
        InputError: There are none.
    """
    plan = make_plan(model.graph, patched, None, masks)
    session = Session(model.wrapped_model, model.anatomy, (plan,), reads=False)
    with torch.no_grad():
        session.during(lambda: model.wrapped_model(prompts.tokens, **prompts.forward))
    logits = None if session.record is None else session.record.logits
    if logits is None:
        raise InputError(
            "The pass did not reach the model's logits, so no metric can be computed from them."
        )
    return logits
