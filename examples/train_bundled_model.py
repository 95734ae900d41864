"""Train the small transformer that ships with circuit_trace, on indirect-object sentences.

    python examples/train_bundled_model.py        # a minute or two, on one core

A sentence names two people, one of whom then gives something away; the next word is the other
name: "When Mary and John went to the store , John gave a drink to" -> "Mary". The pairs of names
in the held-out set, the demo's Mary and John among them, occur together in no training sentence.

Left to itself, a model this small solves the task in other ways than GPT-2 does: it leaves the
answer behind at the giver's place, or collects all names and lets an MLP subtract one. Two habits
of the training, both absent from the model that it writes, lead it to a circuit as in GPT-2: heads
of layer 0 tell the last position who gives, heads of layer 1 look from there for the other name and
copy it. In the first phase layer 0 reads no name but the giver's, and throughout each MLP is left
out of half of the sentences. So the circuit is one that the training asked for.

HookedTransformer does the training, so this script needs TransformerLens 2.16 to 3.x. What it
writes loads on 4.x too: `circuit_trace.integrations.models.load_bundled_model`.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as serialize
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformer_lens import HookedTransformer, HookedTransformerConfig

from circuit_trace.demo.prompts import ANSWERS
from circuit_trace.integrations.models import END_OF_TEXT, UNKNOWN_WORD

DATA_FOLDER = Path(__file__).parents[1] / "circuit_trace" / "demo" / "data"

# fmt: off
NAMES = [
    "Mary", "John", "Alice", "Bob", "Tom", "Anna", "James", "Emma", "Peter", "Kate", "Paul",
    "Sarah", "David", "Lucy", "Mark", "Jane", "Simon", "Laura", "Adam", "Ruth", "Henry", "Clara",
    "Oscar", "Nina",
]
PLACES = [
    "store", "park", "school", "garden", "station", "library", "market", "office", "beach", "cafe",
    "museum", "kitchen",
]
OBJECTS = [
    "drink", "book", "ring", "letter", "ball", "flower", "snack", "map", "coin", "gift", "card",
    "basket",
]
# fmt: on

GIVER_TO_END = 4  # words from the giver to the last one, in every template
TEMPLATES = (
    "When {first} and {second} went to the {place} , {giver} gave a {object} to",
    "After {first} and {second} left the {place} , {giver} handed a {object} to",
    "While {first} and {second} were at the {place} , {giver} passed a {object} to",
    "Then {first} and {second} met near the {place} and {giver} sold a {object} to",
    "Yesterday {first} saw {second} at the {place} , so {giver} brought a {object} to",
    "{first} and {second} had fun at the {place} . Later {giver} offered a {object} to",
    "{first} sat with {second} in the {place} until {giver} threw a {object} to",
    "The {place} was quiet , but {first} found {second} there and {giver} lent a {object} to",
)

MODEL_CONFIG: dict[str, Any] = {
    "n_layers": 2,
    "n_heads": 4,
    "d_model": 64,
    "d_head": 16,
    "d_mlp": 256,
    "n_ctx": 32,
    "act_fn": "gelu",
    "normalization_type": "LN",
    "eps": 1e-5,
    "attention_dir": "causal",
    "positional_embedding_type": "standard",
    "attn_only": False,
    "default_prepend_bos": True,
}

N_HELD_OUT_PAIRS = 40
N_TEST_SENTENCES = 2000
BATCH_SIZE = 192
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 0.1
N_WARMUP_STEPS = 50
OTHER_WORDS_WEIGHT = 0.1  # of the loss on all next words, beside the loss on the answer
FIRST_PHASE = 0.6  # share of the steps in which layer 0 reads no name but the giver's
MLP_DROP_RATE = 0.5

Pair = tuple[str, str]
Hook = tuple[str | Callable[[str], bool], Callable[..., Any]]


@dataclass(frozen=True)
class Sentence:
    """A prompt, the name that completes it, and the name that does not."""

    text: str
    answer: str
    giver: str


@dataclass(frozen=True, eq=False)
class Batch:
    """Sentences as tokens: `[sentence, position]`, and three `[sentence]` tensors."""

    tokens: Tensor
    last: Tensor
    answers: Tensor
    givers: Tensor


def split_pairs(rng: random.Random) -> tuple[list[Pair], list[Pair]]:
    """Split the pairs of names into those to train on and those to test on, with the demo's."""
    pairs: list[Pair] = list(combinations(NAMES, 2))
    pairs.remove(ANSWERS)
    rng.shuffle(pairs)
    return pairs[N_HELD_OUT_PAIRS - 1 :], [ANSWERS, *pairs[: N_HELD_OUT_PAIRS - 1]]


def make_sentences(rng: random.Random, pairs: list[Pair], n_sentences: int) -> list[Sentence]:
    """Fill random templates with random words; either name comes first, and either one gives."""
    sentences = []
    for _ in range(n_sentences):
        pair = rng.choice(pairs)
        first, second = rng.sample(pair, 2)
        giver, answer = rng.sample(pair, 2)
        text = rng.choice(TEMPLATES).format(
            first=first,
            second=second,
            giver=giver,
            place=rng.choice(PLACES),
            object=rng.choice(OBJECTS),
        )
        sentences.append(Sentence(text, answer, giver))
    return sentences


def make_tokenizer() -> Tokenizer:
    """Build a tokenizer with one token per word, which puts END_OF_TEXT before every sentence."""
    template_words = {word for text in TEMPLATES for word in text.split() if "{" not in word}
    vocabulary = [END_OF_TEXT, UNKNOWN_WORD, *sorted(template_words), *NAMES, *PLACES, *OBJECTS]
    word_ids = {word: index for index, word in enumerate(dict.fromkeys(vocabulary))}
    tokenizer = Tokenizer(WordLevel(word_ids, unk_token=UNKNOWN_WORD))
    tokenizer.add_special_tokens([END_OF_TEXT, UNKNOWN_WORD])
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single=f"{END_OF_TEXT} $A", special_tokens=[(END_OF_TEXT, word_ids[END_OF_TEXT])]
    )
    return tokenizer


def encode(tokenizer: Tokenizer, sentences: list[Sentence]) -> Batch:
    """Turn sentences into tokens, the short ones filled up on the right with END_OF_TEXT."""
    ids = [encoding.ids for encoding in tokenizer.encode_batch([s.text for s in sentences])]
    width = max(map(len, ids))
    filler = tokenizer.token_to_id(END_OF_TEXT)
    return Batch(
        tokens=torch.tensor([row + [filler] * (width - len(row)) for row in ids]),
        last=torch.tensor([len(row) - 1 for row in ids]),
        answers=torch.tensor([tokenizer.token_to_id(s.answer) for s in sentences]),
        givers=torch.tensor([tokenizer.token_to_id(s.giver) for s in sentences]),
    )


def see_giver_only(scores: Tensor, hook: Any, last: Tensor) -> Tensor:
    """Let the last position of each sentence see as far back as the giver, any other itself."""
    positions = torch.arange(scores.shape[-1])
    is_last = positions[:, None] == last[:, None, None]
    is_near = positions > last[:, None, None] - GIVER_TO_END - 1
    is_itself = positions[:, None] == positions
    visible = is_itself | (is_last & is_near)
    return scores.masked_fill(~visible[:, None], -torch.inf)


def drop_sentences(mlp_out: Tensor, hook: Any) -> Tensor:
    """Leave the MLP out of a random part of the sentences."""
    return mlp_out * (torch.rand(len(mlp_out), 1, 1) >= MLP_DROP_RATE)


def loss_of(logits: Tensor, batch: Batch) -> Tensor:
    """Return the cross entropy of the answer, plus a little of every other next word's."""
    at_end = logits[torch.arange(len(logits)), batch.last]
    positions = torch.arange(1, batch.tokens.shape[1])
    ignored = -100
    next_words = batch.tokens[:, 1:].masked_fill(positions > batch.last[:, None], ignored)
    other_words = cross_entropy(
        logits[:, :-1].flatten(0, 1), next_words.flatten(), ignore_index=ignored
    )
    return cross_entropy(at_end, batch.answers) + OTHER_WORDS_WEIGHT * other_words


def train(
    model: HookedTransformer,
    tokenizer: Tokenizer,
    rng: random.Random,
    pairs: list[Pair],
    n_steps: int,
) -> None:
    """Train the model in place, with a learning rate that rises quickly and falls to zero."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / N_WARMUP_STEPS, 1 - step / n_steps)
    )
    drops: list[Hook] = [(f"blocks.{i}.hook_mlp_out", drop_sentences) for i in (0, 1)]
    for step in (bar := tqdm(range(n_steps), desc="training")):
        batch = encode(tokenizer, make_sentences(rng, pairs, BATCH_SIZE))
        hooks = list(drops)
        if step < FIRST_PHASE * n_steps:
            masked = partial(see_giver_only, last=batch.last)
            hooks.append(("blocks.0.attn.hook_attn_scores", masked))
        loss = loss_of(model.run_with_hooks(batch.tokens, fwd_hooks=hooks), batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.4f}", refresh=False)


@torch.no_grad()
def evaluate(model: HookedTransformer, batch: Batch) -> tuple[float, float, float]:
    """Return the accuracy, and the mean and the least logit difference, answer minus giver."""
    rows = torch.arange(len(batch.tokens))
    at_end = model(batch.tokens)[rows, batch.last]
    accuracy = (at_end.argmax(-1) == batch.answers).float().mean().item()
    difference = at_end[rows, batch.answers] - at_end[rows, batch.givers]
    return accuracy, difference.mean().item(), difference.min().item()


def save(
    model: HookedTransformer, tokenizer: Tokenizer, config: dict[str, Any], folder: Path
) -> None:
    """Write weights, configuration and tokenizer, as `load_bundled_model` reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().contiguous() for name, value in model.named_parameters()}
    # `save_file` would leave a file that only its owner can read.
    (folder / "model.safetensors").write_bytes(serialize(weights))
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    tokenizer.save(str(folder / "tokenizer.json"))


def main() -> None:
    """Train, print how well the model does on names that it never saw together, and write it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=900, help="training steps")
    parser.add_argument("--seed", type=int, default=3, help="the same seed, the same weights")
    parser.add_argument("--out", type=Path, default=DATA_FOLDER, help="the folder to write into")
    options = parser.parse_args()

    torch.set_num_threads(1)  # the same sums in the same order on every machine, and no slower
    rng = random.Random(options.seed)
    train_pairs, test_pairs = split_pairs(rng)
    tokenizer = make_tokenizer()
    config = {**MODEL_CONFIG, "d_vocab": tokenizer.get_vocab_size()}
    model = HookedTransformer(HookedTransformerConfig(**config, device="cpu", seed=options.seed))
    train(model, tokenizer, rng, train_pairs, options.steps)

    test_batch = encode(tokenizer, make_sentences(rng, test_pairs, N_TEST_SENTENCES))
    accuracy, mean_difference, least_difference = evaluate(model, test_batch)
    save(model, tokenizer, config, options.out)
    n_parameters = sum(value.numel() for value in model.parameters())
    print(
        f"{n_parameters:,} parameters; on {N_TEST_SENTENCES:,} sentences with unseen pairs of "
        f"names: accuracy {accuracy:.2%}, logit difference {mean_difference:.2f} on average, "
        f"{least_difference:.2f} at least. Written to {options.out}"
    )


if __name__ == "__main__":
    main()
