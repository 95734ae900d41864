"""How one head attended in a traced pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from circuit_trace.anatomy import HeadTensor
from circuit_trace.errors import EdgeError, InputError, NoTraceError
from circuit_trace.graph import Graph
from circuit_trace.plan import head_names


@dataclass(frozen=True, eq=False, repr=False)
class HeadRecord:
    """A head's attention pattern, queries, keys and values in one pass, as its patches left them.

    `q`, `k` and `v` are what the head computes from the stream that it reads (TransformerLens'
    `hook_q`, `hook_k`, `hook_v`): before rotary embeddings, before norms of queries and keys, and
    before a clip of all three to a range (`clip_qkv` of OLMo, OLMoE, DBRX and MPT). What attention
    multiplies where there are such is in `rot_q` and `rot_k`; of clipped values it multiplies
    `v.clamp(-clip, clip)`, which is not recorded. Keys and values are
    those of the key-value head that serves the head. What it writes is `trace.current[name]`. In a
    pass that goes on from cached keys, `q`, `k` and `v` are the new tokens' alone.

    >>> import torch
    >>> import circuit_trace as ct
    >>> from circuit_trace.demo.prompts import CLEAN, CORRUPT
    >>> model = ct.wrap(ct.load_model("bundled"))
    >>> trace = model.trace(CLEAN, corrupt=CORRUPT, edges=["A0.1->A1.2.Q"], heads="A1.2")
    >>> head = trace.head("A1.2")
    >>> head
    <HeadRecord A1.2: q [1, 15, 16], k [1, 15, 16], v [1, 15, 16], pattern [1, 15, 15]>
    >>> z = head.pattern @ head.v
    >>> torch.allclose(z @ model.blocks[1].attn.W_O[2], trace.current["A1.2"], atol=1e-4)
    True
    """

    name: str
    tensors: Mapping[HeadTensor, Tensor]

    @property
    def pattern(self) -> Float[Tensor, "batch query key"]:
        """How much each query position attends to each key position, after the softmax.

        Raises:
            InputError: The pass did not show it.
        """
        return self._shown("pattern")

    @property
    def q(self) -> Float[Tensor, "batch seq d_head"]:
        """The queries, not rotated, before a clip."""
        return self._shown("q")

    @property
    def k(self) -> Float[Tensor, "batch seq d_head"]:
        """The keys, not rotated, before a clip."""
        return self._shown("k")

    @property
    def v(self) -> Float[Tensor, "batch seq d_head"]:
        """The values, before a clip."""
        return self._shown("v")

    @property
    def rot_q(self) -> Float[Tensor, "batch seq d_head"] | None:
        """The queries after norms and rotary embeddings (`hook_rot_q`), None where the model has
        no rotary embeddings or does not show them (bridges of GPT-NeoX, GPT-J and Phi-3)."""
        return self._shown("rot_q") if "rot_q" in self.tensors else None

    @property
    def rot_k(self) -> Float[Tensor, "batch seq d_head"] | None:
        """The keys after norms and rotary embeddings (`hook_rot_k`), None as for `rot_q`."""
        return self._shown("rot_k") if "rot_k" in self.tensors else None

    def _shown(self, what: HeadTensor) -> Tensor:
        if what not in self.tensors:
            raise InputError(
                f"This pass did not show the {what!r} of {self.name}: a fused kernel (sdpa or flash "
                "attention) computes no pattern. Run the model with eager attention "
                "(attn_implementation='eager' when it is loaded, or "
                "model.original_model.set_attn_implementation('eager') on a TransformerBridge) and "
                f"trace again. Recorded are: {', '.join(self.tensors) or 'none'}."
            )
        return self.tensors[what].clone()  # writing to it must not change the record

    def __repr__(self) -> str:
        shapes = (f"{what} {list(tensor.shape)}" for what, tensor in self.tensors.items())
        return f"<HeadRecord {self.name}: {', '.join(shapes)}>"


def head_record(
    graph: Graph, recorded: Mapping[str, Mapping[HeadTensor, Tensor]], name: str
) -> HeadRecord:
    """The record of one head, among those of a pass.

    Raises:
        EdgeError: There is no such head.
        NoTraceError: It was not recorded.
    """
    if not isinstance(name, str):
        raise EdgeError(f"Expected the name of a head, such as 'A0.1'; got {name!r}.")
    if name in recorded:
        return HeadRecord(name, recorded[name])
    head_names(graph, name)
    raise NoTraceError(
        f"This pass did not record the head {name!r}; it recorded "
        f"{', '.join(recorded) or 'none'}. Ask for it: model.trace(..., heads=[{name!r}])."
    )
