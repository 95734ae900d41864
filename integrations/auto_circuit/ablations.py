"""What is patched in: each source's output on a sample, as one tensor."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from torch import Tensor

import circuit_trace as ct
from circuit_trace.errors import InputError
from circuit_trace.plan.ablation import check_ablation

from .data import BatchKey, batches_of
from .model import PatchableModel

OF_A_BATCH = (
    ct.AblationType.RESAMPLE,
    ct.AblationType.BATCH_TOKENWISE_MEAN,
    ct.AblationType.BATCH_ALL_TOK_MEAN,
)
"""The ablations that ask which prompts of a batch they are taken from."""


def src_ablations(
    model: PatchableModel,
    sample: Any,
    ablation_type: ct.AblationType = ct.AblationType.RESAMPLE,
) -> Tensor:
    """Compute what every source is to write instead of its output.

    `model.source_outputs` gives the same as `SourceOutputs`, which are far smaller.

    >>> import circuit_trace as ct
    >>> from circuit_trace.integrations.auto_circuit import patchable_model
    >>> model = patchable_model(ct.load_model("bundled"), factorized=True, separate_qkv=True)
    >>> tuple(src_ablations(model, model.to_tokens("When Mary and John went")).shape)
    (11, 1, 6, 64)

    Args:
        model: The model, from `patchable_model`.
        sample: Tokens `[batch, seq]`; for a mean over a dataset, a `PromptDataLoader`.
        ablation_type: What becomes of the outputs.

    Returns:
        A tensor `[n_srcs, batch, seq, d_model]` without gradients. A mean is repeated for each prompt.

    Raises:
        InputError: The sample is of the other kind, or empty; or the ablation is none.
    """
    check_ablation(ablation_type)
    if not ablation_type.mean_over_dataset:
        if not isinstance(sample, Tensor):
            raise InputError(
                f"The ablation {ablation_type} takes one batch of tokens [batch, seq], got "
                f"{type(sample).__name__}; batch_src_ablations takes a dataset, batch by batch."
            )
        prefix = model.prefix_of(sample)
        return model.engine.source_outputs(sample, ablation_type, forward=prefix).stack()
    prompts = _first_prompts(sample)
    outputs = model.engine.source_outputs(sample, ablation_type, forward=model.prefix_of(prompts))
    return outputs.fitted(len(prompts), outputs.seq).stack()


def batch_src_ablations(
    model: PatchableModel,
    dataloader: Iterable[Any],
    ablation_type: ct.AblationType = ct.AblationType.RESAMPLE,
    clean_corrupt: Literal["clean", "corrupt"] | None = None,
) -> dict[BatchKey, Tensor]:
    """`src_ablations` of each batch, by the batches' keys.

    Args:
        model: The model, from `patchable_model`.
        dataloader: A `PromptDataLoader`.
        ablation_type: What becomes of the outputs.
        clean_corrupt: Which prompts they are taken from, for the ablations of one batch alone.

    Raises:
        InputError: `clean_corrupt` is missing, or given where it has no meaning.
    """
    check_ablation(ablation_type)
    wanted = ablation_type in OF_A_BATCH
    if clean_corrupt not in (("clean", "corrupt") if wanted else (None,)):
        raise InputError(
            f"The ablation {ablation_type} "
            + ("needs clean_corrupt='clean' or 'corrupt'" if wanted else "takes no clean_corrupt")
            + f"; got {clean_corrupt!r}."
        )
    if ablation_type.mean_over_dataset:
        mean = src_ablations(model, dataloader, ablation_type)
        return {batch.key: mean for batch in batches_of(dataloader)}
    return {
        batch.key: src_ablations(
            model, batch.corrupt if clean_corrupt == "corrupt" else batch.clean, ablation_type
        )
        for batch in batches_of(dataloader)
    }


def _first_prompts(dataset: Any) -> Tensor:
    """The clean prompts of a dataset's first batch, for their number."""
    if isinstance(dataset, Tensor) or not isinstance(dataset, Iterable):
        raise InputError(
            f"A mean over a dataset takes a PromptDataLoader; got {type(dataset).__name__}."
        )
    first = next(batches_of(dataset), None)
    if first is None:
        raise InputError("The dataset has no batch: batch_size is larger than it, or it is empty.")
    return first.clean
