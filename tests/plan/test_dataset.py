"""Datasets in every form that people keep them, and what is said of those that cannot be read."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from torch.utils.data import DataLoader, Dataset, TensorDataset

import circuit_trace as ct
from tests.models import oracle, shared, tokens, wrapped
from tests.oracle import Ask

A = ct.AblationType
CLEAN = [tokens(20, batch=1), tokens(21, batch=4), tokens(22, batch=2)]
CORRUPT = [tokens(30, batch=1), tokens(31, batch=4), tokens(32, batch=2)]
"""Batches of unequal sizes: a mean of the batches' means would be wrong."""


@dataclass(frozen=True)
class Pair:
    clean: Tensor
    corrupt: Tensor


class Prompts(Dataset):
    """A dataset as people write them, one prompt an item."""

    def __init__(self, kind: Callable[[Tensor, Tensor], Any]) -> None:
        self.items = [
            kind(a, b)
            for x, y in zip(CLEAN, CORRUPT, strict=True)
            for a, b in zip(x, y, strict=True)
        ]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


def pairs() -> list[tuple[Tensor, Tensor]]:
    return list(zip(CLEAN, CORRUPT, strict=True))


def as_dict(clean: Tensor, corrupt: Tensor) -> dict[str, Tensor]:
    return {"clean": clean, "corrupt": corrupt}


PAIRED: dict[str, Callable[[], Iterable[Any]]] = {
    "tuples": pairs,
    "a tuple of tuples": lambda: tuple(pairs()),
    "a generator": lambda: (pair for pair in pairs()),
    "an iterator": lambda: iter(pairs()),
    "dicts": lambda: [as_dict(*pair) for pair in pairs()],
    "dicts with more": lambda: [{**as_dict(*pair), "answers": 3} for pair in pairs()],
    "objects": lambda: [Pair(*pair) for pair in pairs()],
    "a DataLoader of dicts": lambda: DataLoader(Prompts(as_dict), batch_size=3),
    "a DataLoader of tuples": lambda: DataLoader(Prompts(lambda a, b: (a, b)), batch_size=3),
    "a DataLoader of a TensorDataset": lambda: DataLoader(
        TensorDataset(torch.cat(CLEAN), torch.cat(CORRUPT)), batch_size=3
    ),
}

SINGLE: dict[str, Callable[[], Any]] = {
    "a list of tensors": lambda: CLEAN,
    "a generator of tensors": lambda: (batch for batch in CLEAN),
    "one tensor": lambda: torch.cat(CLEAN),
    "a DataLoader of tensors": lambda: DataLoader(Prompts(lambda a, b: a), batch_size=3),
    "a DataLoader of a TensorDataset": lambda: DataLoader(
        TensorDataset(torch.cat(CLEAN)), batch_size=3
    ),
}


def plain_mean(ablation: A) -> Tensor:
    """The mean over all prompts of what each source writes, all prompts in one batch."""
    chosen = []
    if ablation is not A.TOKENWISE_MEAN_CORRUPT:
        chosen += CLEAN
    if ablation is not A.TOKENWISE_MEAN_CLEAN:
        chosen += CORRUPT
    wrote = oracle("hooked LN").run(torch.cat(chosen)).wrote
    return torch.stack([value.mean(0, keepdim=True) for value in wrote.values()])


def outputs(data: Any, ablation: A) -> ct.SourceOutputs:
    return wrapped("hooked LN").source_outputs(data, ablation)


@pytest.mark.parametrize(
    "ablation",
    [A.TOKENWISE_MEAN_CLEAN, A.TOKENWISE_MEAN_CORRUPT, A.TOKENWISE_MEAN_CLEAN_AND_CORRUPT],
)
@pytest.mark.parametrize("kind", PAIRED)
def test_pairs_of_clean_and_corrupt(kind: str, ablation: A) -> None:
    got = outputs(PAIRED[kind](), ablation)
    assert_close(got.stack(), plain_mean(ablation), rtol=1e-5, atol=1e-5)
    assert (got.batch, got.seq) == (1, 6)


@pytest.mark.parametrize("kind", SINGLE)
def test_prompts_without_a_pair(kind: str) -> None:
    got = outputs(SINGLE[kind](), A.TOKENWISE_MEAN_CLEAN)
    assert_close(got.stack(), plain_mean(A.TOKENWISE_MEAN_CLEAN), rtol=1e-5, atol=1e-5)


def test_every_prompt_weighs_the_same_whatever_its_batch() -> None:
    whole = outputs([torch.cat(CLEAN)], A.TOKENWISE_MEAN_CLEAN).stack()
    one_by_one = outputs(list(torch.cat(CLEAN)[:, None]), A.TOKENWISE_MEAN_CLEAN).stack()
    assert_close(one_by_one, whole, rtol=1e-5, atol=1e-5)
    means = [outputs([batch], A.TOKENWISE_MEAN_CLEAN).stack() for batch in CLEAN]
    assert (torch.stack(means).mean(0) - whole).abs().max() > 1e-2, "the case tells them apart"


def test_a_lone_mapping_is_one_pair() -> None:
    """Its keys "clean" and "corrupt" are not taken for prompts."""
    clean, corrupt = pairs()[1]
    got = outputs(as_dict(clean, corrupt), A.TOKENWISE_MEAN_CORRUPT)
    expected = oracle("hooked LN").run(corrupt).wrote["A0.1"].mean(0, keepdim=True)
    assert_close(got["A0.1"], expected, rtol=1e-5, atol=1e-5)


ABLATIONS = [ablation for ablation in A if ablation.mean_over_dataset]


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_a_tuple_of_two_is_one_pair_as_everywhere(ablation: A) -> None:
    """With its answers too, as `score_edges` takes it and its message says to pass it here."""
    clean, corrupt = torch.cat(CLEAN), torch.cat(CORRUPT)
    answers = torch.zeros(len(clean), dtype=torch.long)
    for data in (
        (clean, corrupt),
        (clean, corrupt, answers),
        (clean, corrupt, answers, answers + 1),
        [(clean, corrupt, answers)],
        [[clean, corrupt, answers, answers + 1]],
        {"clean": clean, "corrupt": corrupt, "answers": answers},
    ):
        got = outputs(data, ablation)
        assert_close(got.stack(), plain_mean(ablation), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_scores_of_a_pair_by_its_own_mean(ablation: A) -> None:
    """The data that is scored is the data of the mean: no score is halved."""
    model = wrapped("hooked LN")
    data = (CLEAN[1], CORRUPT[1], torch.tensor([1, 2, 3, 4]), torch.tensor([5, 6, 7, 8]))
    found = ct.exact_scores(
        model, data, patched=model.source_outputs(data, ablation), edges="*->Resid End"
    )
    chosen = [data[0]] if ablation is A.TOKENWISE_MEAN_CLEAN else [data[1]]
    chosen = list(data[:2]) if ablation is A.TOKENWISE_MEAN_CLEAN_AND_CORRUPT else chosen
    second = oracle("hooked LN")
    wrote = second.run(torch.cat(chosen)).wrote
    mean = {name: value.mean(0, keepdim=True).expand(4, -1, -1) for name, value in wrote.items()}
    rows = torch.arange(4)

    def metric(asks: list[Ask]) -> float:
        logits = second.run(data[0], mean, asks).logits[:, -1]
        return float((logits[rows, data[2]] - logits[rows, data[3]]).mean())

    for src in ("Resid Start", "A0.1", "MLP 1"):
        expected = metric([Ask(src, "Resid End", None, 1.0)]) - metric([])
        score = found["blocks.1.hook_resid_post"][model.graph.src_by_name[src].idx]
        assert float(score) == pytest.approx(expected, abs=1e-4)
        assert abs(expected) > 1e-3


BAD_DATA: dict[str, tuple[Callable[[], Any], A, str]] = {
    "empty": (
        lambda: [],
        A.TOKENWISE_MEAN_CLEAN,
        "The dataset for the ablation tokenwise mean clean is empty: there is nothing to average.",
    ),
    "an exhausted generator": (
        lambda: (batch for batch in ()),
        A.TOKENWISE_MEAN_CORRUPT,
        "The dataset for the ablation tokenwise mean corrupt is empty: there is nothing to average.",
    ),
    "no iterable": (
        lambda: 5,
        A.TOKENWISE_MEAN_CLEAN,
        "Expected pairs of prompts, (clean, corrupt) or (clean, corrupt, answers, wrong_answers), or "
        "an iterable of such batches; got int.",
    ),
    "no pairs": (
        lambda: CLEAN,
        A.TOKENWISE_MEAN_CLEAN_AND_CORRUPT,
        "Batch 0: Expected clean and corrupt prompts, as (clean, corrupt) or under these names; got a "
        "Tensor without them.",
    ),
    "a later batch without a pair": (
        lambda: [*pairs(), CLEAN[0]],
        A.TOKENWISE_MEAN_CLEAN_AND_CORRUPT,
        "Batch 3: Expected clean and corrupt prompts, as (clean, corrupt) or under these names; got a "
        "Tensor without them.",
    ),
    "no corrupt prompts": (
        lambda: {"clean": CLEAN[0]},
        A.TOKENWISE_MEAN_CORRUPT,
        "Batch 0: Expected corrupt prompts, as (clean, corrupt) or under these names; got a dict "
        "without them.",
    ),
    "a tuple of three batches": (
        lambda: tuple(CLEAN),
        A.TOKENWISE_MEAN_CLEAN,
        "A tuple is one batch, (clean, corrupt, answers, wrong_answers), but all 3 of these look like "
        "prompts. Give several batches of prompts in a list.",
    ),
    "unequal lengths": (
        lambda: [tokens(1, seq=6), tokens(2, seq=7)],
        A.TOKENWISE_MEAN_CLEAN,
        "A token-wise mean needs prompts of one length: batch 1 has 7 tokens, those before it 6. "
        "Texts of unequal length are padded if they are one batch, a list of them; or pad tokens "
        "yourself, with an attention_mask.",
    ),
    "no tokens": (
        lambda: [3.5],
        A.TOKENWISE_MEAN_CLEAN,
        "Batch 0: Expected token ids as a tensor [batch, seq], a string or a list of strings; got "
        "float.",
    ),
    "text": (
        lambda: ["a prompt"],
        A.TOKENWISE_MEAN_CLEAN,
        "Batch 0: Got text, but the wrapped model has no tokenizer: pass token ids [batch, seq].",
    ),
    "a dataset for one batch": (
        lambda: CLEAN,
        A.RESAMPLE,
        "Expected token ids as a tensor [batch, seq], a string or a list of strings; got list.",
    ),
}


@pytest.mark.parametrize("what", BAD_DATA)
@pytest.mark.usefixtures("as_a_user")
def test_data_that_is_refused(what: str) -> None:
    make, ablation, message = BAD_DATA[what]
    with pytest.raises(ct.InputError) as caught:
        outputs(make(), ablation)
    assert str(caught.value) == message


def test_the_dataset_is_streamed() -> None:
    """A batch is asked for only when the one before it has run."""
    log: list[str] = []

    def batches() -> Iterable[Tensor]:
        for number, batch in enumerate(CLEAN):
            log.append(f"gave {number}")
            yield batch

    hooked = shared("hooked LN")
    handle = hooked.embed.register_forward_hook(lambda *_: log.append("ran"))
    try:
        outputs(batches(), A.TOKENWISE_MEAN_CLEAN)
    finally:
        handle.remove()
    assert log == ["gave 0", "ran", "gave 1", "ran", "gave 2", "ran"]
