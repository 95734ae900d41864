"""Score every edge of a model on a dataset: a method, batch by batch, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sized
from dataclasses import fields, replace
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from circuit_trace.engine import Engine
from circuit_trace.errors import InputError
from circuit_trace.hooks import same_every_time
from circuit_trace.plan import (
    AblationType,
    ForwardArg,
    PromptPairs,
    SourceOutputs,
    unflat_scores,
)
from circuit_trace.progress import tqdm
from circuit_trace.record import About
from circuit_trace.score.exact import BAR_DELAY, exact_scores
from circuit_trace.score.gradients import logits_of
from circuit_trace.score.methods import METHODS, Method, Task
from circuit_trace.score.metrics import Metric, read_metric, signs_of
from circuit_trace.score.options import (
    Steps,
    check_model,
    check_not_flat,
    read_mask_value,
    read_method,
    read_path,
)
from circuit_trace.score.runs import check_patched, dtype_of_scores, is_resampled
from circuit_trace.score.scores import EdgeScores
from circuit_trace.score.share import Share
from circuit_trace.score.unfinished import State, Unfinished, digest, mark_of, name_of

SIZES = ("‖patched − clean‖ of what it carries", "")
"""What magnitudes say."""


def score_edges(
    model: Engine,
    data: Any,
    metric: Metric = "logit_diff",
    *,
    method: str = "eap",
    steps: Steps = 5,
    ablation: AblationType = AblationType.RESAMPLE,
    patched: SourceOutputs | None = None,
    mask_value: float = 0.0,
    forward: ForwardArg | None = None,
    resume: str | PathLike[str] | None = None,
    bar: bool = True,
) -> EdgeScores:
    """Estimate for every edge how much the metric changes when that edge alone is patched.

    >>> import circuit_trace as ct
    >>> from circuit_trace.demo.prompts import ANSWERS, CLEAN, CORRUPT
    >>> model = ct.wrap(ct.load_model("bundled"))
    >>> scores = ct.score_edges(model, (CLEAN, CORRUPT, *ANSWERS), "logit_diff")
    >>> model.srcs[int(scores["blocks.1.hook_resid_post"].argmin())].name
    'A1.0'

    The sign is the same for every method: negative where patching the edge lowers the metric. C_s is
    what a source writes on the clean prompts, P_s what is patched in. Scores are means over all
    prompts, each counting alike; with `seq_len` an edge has a score at each position, else their sum.
    A metric that gives one number for a batch is taken for the mean over its prompts.

    - `"eap"`: edge attribution patching (Syed et al. 2023), (P_s − C_s) · ∂metric/∂input_d of the
      clean run: one pass forward and backward, and one forward for the corrupt prompts.
    - `"eap-ig"`: the gradient is a mean over runs whose `Resid Start` lies between the clean and the
      patched one (EAP-IG, Hanna et al. 2024, "Have Faith in Faithfulness"). The scores of the edges
      out of `Resid Start` then add up to metric(corrupt) − metric(clean), but for the error of `steps`.
    - `"eap-ig-activations"`: a mean over runs in each of which one layer's heads, or one MLP, or
      `Resid Start`, write something between what they do and what is patched in. EAP-IG's own code puts
      constants in that place instead, so that there no gradient passes through the site to what it
      reads: edges into it and before it score otherwise than here.
    - `"clean-corrupted"`: the mean of the gradients at the clean and at the patched `Resid Start`.
    - `"mask-gradient"`: ∂metric/∂mask with all masks at `mask_value`; at 0 this is `"eap"`.
    - `"magnitude"`: ‖P_s − C_s‖ (over all positions where they are not told apart); no metric.
    - `"exact"`: each edge is patched alone and the change measured, see `exact_scores`.

    Edges into `Resid End` add up to metric(corrupt) − metric(clean) only where the metric is linear in
    the end of the stream: a logit difference of a model without a final norm.

    Where torch.distributed is initialised (`init_process_group`, `accelerate.PartialState()`) each
    process scores its share of the batches and all return the same scores, those that one process
    would; give every process the same model and whole data. Data, model or options that differ, and an
    error in one of them, stop all.

    Args:
        model: A wrapped model, with no patch open.
        data: Pairs of prompts: one batch `(clean, corrupt)` or `(clean, corrupt, answers,
            wrong_answers)`, or a mapping or object with these names; or an iterable (a DataLoader) of
            such batches, which is streamed. Prompts are tokens `[batch, seq]`, a text or a list of
            texts; answers token ids `[batch]` or `[batch, n]`, or for each prompt an id, a text, or a
            list of them, as many as it has. Texts of unequal length are padded at the left and masked,
            so that pairs are aligned from the end; tokens that you have padded, on either side, come
            with an `attention_mask` (and `corrupt_attention_mask`, if that is another) in the mapping
            or in `forward`. Padding counts nowhere and is not patched.
        metric: "logit_diff", the answers' mean logit less the wrong answers' at the last position;
            "answer_logprob", the answers' mean log-probability there; "kl", KL(clean ‖ patched) of the
            next token there, in nats (it has no slope at the clean run, so not for "eap"); "loss", the
            mean cross-entropy of the next token over all positions of the clean prompt; or a function
            of logits `[batch, seq, d_vocab]` and batch that returns a number for each prompt, or their
            mean. `batch.last_logits(logits)` are those at each prompt's last token.
        method: One of the above.
        steps: For both EAP-IG methods (others have no use for it), the number of points on the way, at
            the middle of equal parts (the midpoint rule, whose error falls as 1/steps²), or the points
            themselves, from 0 (clean) to 1 (patched). EAP-IG's own code takes other points for the same
            number: `[1 - k / 5 for k in range(5)]` for "eap-ig", from the patched end, never the clean
            one; `[1 - k / 5 for k in range(1, 6)]`, those of the paper, for "eap-ig-activations".
        ablation: What is patched in; a mean over a dataset is computed once and given as `patched`.
        patched: What is patched in, from `model.source_outputs`, instead of each batch's own.
        mask_value: Where `"mask-gradient"` takes the gradient; others have no use for it.
        forward: More arguments of every forward pass, or a function of the batch (its `clean` and
            `corrupt` tokens) that returns them, such as `{"attention_mask": mask}`.
        resume: A file that the sums are kept in while it runs; a run that was killed goes on from it
            with the same data in the same order. Of several processes each has its own, whose name
            ends in `.0-of-2`; delete it when you have the scores.
        bar: Show a progress bar if it takes longer than two seconds.

    Returns:
        A tensor `[seq?] [head?] [n_sources]` for each destination module, on the CPU.

    Raises:
        InputError: Data, metric, options or model do not fit each other, a score is not a finite number
            (the edge and the batch are named), or the file to resume from is of another run.
        FormatError: The file to resume from cannot be read.
    """
    check_model(model)
    check_patched(model, ablation, patched)
    measure = read_metric(metric)
    path, mask_value = read_path(steps), read_mask_value(mask_value)
    if method == "exact":
        return exact_scores(
            model,
            data,
            metric,
            ablation=ablation,
            patched=patched,
            forward=forward,
            resume=resume,
            bar=bar,
        )
    read_method(method)
    check_not_flat(metric, method, path, mask_value)
    task = Task(model, measure, path, ablation, patched, mask_value)
    share = Share.here(model.wrapped_model)
    with share.together():
        share.check(data)
        is_kept = isinstance(resume, str | PathLike)
        settings = _settings(task, metric, method, share) if is_kept or share.world > 1 else {}
        file = Unfinished(share.file(resume), settings)
        resampled = is_resampled(ablation, patched)
        batches = model.pairs_of(data, forward, resampled=resampled)
        batches = tqdm(
            batches,
            total=_n_batches(data),
            desc="scoring edges",
            unit="batch",
            delay=BAR_DELAY,
            disable=not bar or share.rank > 0,
        )
        state = _add_up(task, method, batches, share, file, file.load(_start(model)))
    sums = share.total(torch.cat([state.tensors["sums"], state.tensors["prompts"]]))
    scores = unflat_scores(model.graph, (sums[:-1] / sums[-1]).to(dtype_of_scores(model)))
    signs = SIZES if method == "magnitude" else signs_of(metric, is_estimate=True)
    return EdgeScores(scores, graph=model.graph, signs=signs)


def _start(model: Engine) -> State:
    sums = torch.zeros(model.n_edges, dtype=torch.float64)
    prompts = torch.zeros(1, dtype=torch.float64)
    first = torch.zeros(2, dtype=torch.float64)
    seen = torch.zeros(8, dtype=torch.uint8)
    return State({"sums": sums, "prompts": prompts, "seen": seen, "first": first}, 0, 0)


def _add_up(
    task: Task,
    method: str,
    batches: Iterable[PromptPairs],
    share: Share,
    file: Unfinished,
    state: State,
) -> State:
    """Add the scores of this process' batches to the state, beginning behind those in it."""
    done, number, first = state.batch, -1, state.tensors["first"]
    marks = file.keeps or share.world > 1
    seen = mark_of(file.settings) if share.world > 1 else torch.zeros(8, dtype=torch.uint8)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            for number, batch in enumerate(map(_outside_inference, batches)):
                seen = _seen(seen, batch) if marks else seen
                if number == 0 and file.keeps and method != "magnitude":
                    first = _told_apart(task, batch)
                if number < done:
                    _check_same(number, done, seen, first, state)
                else:
                    sums, prompts = state.tensors["sums"], state.tensors["prompts"]
                    if number in share:
                        sums = sums + _scored(task, METHODS[method], batch, number)
                        prompts = prompts + len(batch)
                    tensors = {"sums": sums, "prompts": prompts, "seen": seen, "first": first}
                    state = State(tensors, number + 1, 0)
                    file.save(state)
                share.meet(number, seen)
    finally:
        if state.batch > done:
            file.save(state, now=True)
    if number + 1 < done:
        raise InputError(
            f"The run to resume had scored {done} batches, but this data has {number + 1}. Resume "
            "with the same data, or name another file."
        )
    return state


def _n_batches(data: Any) -> int | None:
    """How many batches there are, where that is known before they are read."""
    is_batch = isinstance(data, tuple | Mapping) or not isinstance(data, Iterable)
    return len(data) if isinstance(data, Sized) and not is_batch else None


def _outside_inference(batch: PromptPairs) -> PromptPairs:
    """The same tokens as autograd can keep them, if they were made in inference mode."""
    made_there = {
        field.name: tensor.clone()
        for field in fields(batch)
        if isinstance(tensor := getattr(batch, field.name), Tensor) and tensor.is_inference()
    }
    return replace(batch, **made_there)


def _scored(task: Task, run: Method, batch: PromptPairs, number: int) -> Tensor:
    """A batch's scores, summed over its prompts, one per edge."""
    model = task.model
    seq = batch.clean.shape[1]
    if model.seq_len not in (None, seq):
        raise InputError(
            f"Batch {number}: the model was wrapped with seq_len={model.seq_len}, but these prompts "
            f"have {seq} tokens. Wrap it with seq_len={seq}, or without positions."
        )
    try:
        with same_every_time(model.wrapped_model):
            scores = run(task, batch).detach().reshape(-1).cpu()
    except InputError as error:
        raise InputError(f"Batch {number}: {error}") from error
    wrong = (~scores.isfinite()).nonzero()
    if len(wrong):
        edge = model.graph.edge_at(int(wrong[0]))
        raise InputError(
            f"Batch {number}: the score of {str(edge)!r} is {scores[wrong[0, 0]].item()}, and "
            f"{len(wrong) - 1:,} others are not finite either. Look at what its source writes in "
            "that batch, model.trace(clean, corrupt=corrupt), and at the metric's gradient."
        )
    return scores.double()


def _seen(before: Tensor, batch: PromptPairs) -> Tensor:
    """What tells the batches up to this one from any others."""
    seen = digest([before, *batch.tensors])
    return torch.tensor(list(bytes.fromhex(seen)), dtype=torch.uint8)


def _check_same(number: int, done: int, seen: Tensor, first: Tensor, state: State) -> None:
    """Check, where the run to resume ended, that it had the same data and metric."""
    if number < done - 1:
        return
    if not torch.equal(seen, state.tensors["seen"]):
        raise InputError(
            f"The first {done} batches are not those of the run to resume. Resume with the same data "
            "in the same order (a DataLoader without shuffle), or name another file."
        )
    if not torch.allclose(first, state.tensors["first"], rtol=1e-4, atol=1e-6, equal_nan=True):
        raise InputError(
            "The metric of the first clean prompts is not what it was in the run to resume: the metric, "
            "the model or forward= has changed. Name another file."
        )


def _told_apart(task: Task, batch: PromptPairs) -> Tensor:
    """The mean metric of the clean prompts and the spread of their logits, which tell a function and
    a forward pass from others of the same name."""
    try:
        with torch.no_grad(), same_every_time(task.model.wrapped_model):
            prompts = batch.clean_prompts
            logits = logits_of(task.model.wrapped_model(prompts.tokens, **prompts.forward))
            value = task.metric(logits, batch, logits).double().mean()
    except InputError as error:
        raise InputError(f"Batch 0: {error}") from error
    return torch.stack([value, logits.double().std()]).cpu()


def _settings(task: Task, metric: Any, method: str, share: Share) -> dict[str, Any]:
    """What two runs must agree in for one to go on from the other, or for both to be one."""
    model = task.model
    outputs = [] if task.patched is None else [site.code for site in task.patched.sites]
    return {
        "configuration of the model": About.of(model.wrapped_model, model.cfg).config_hash,
        "state of the model's weights": digest(model.wrapped_model.parameters()),
        "choice of edges": f"{model.n_edges} with seq_len={model.seq_len}",
        "method": method,
        "metric": name_of(metric),
        "steps": list(task.path),
        "mask_value": task.mask_value,
        "ablation": task.ablation.name if task.patched is None else f"patched= {digest(outputs)}",
        "number of processes": share.world,
    }
