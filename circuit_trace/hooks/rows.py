"""Change what one destination reads, by another change in each row of a batch: many edges a pass."""

from __future__ import annotations

from functools import partial

from jaxtyping import Float
from torch import Tensor, nn

from circuit_trace.anatomy import Anatomy, Reader
from circuit_trace.graph import DestNode
from circuit_trace.hooks.attach import attach, unflattened
from circuit_trace.hooks.check import PassCheck, did_not_run
from circuit_trace.hooks.delta import Delta, Scratch, add_delta, replace_heads
from circuit_trace.hooks.scope import Scope
from circuit_trace.plan import Prompts


def run_rows(
    model: nn.Module,
    anatomy: Anatomy,
    dest: DestNode,
    prompts: Prompts,
    change: Float[Tensor, "row pos d_model"],
) -> Tensor:
    """Run the model on these prompts and return its logits, with `change` added to what `dest` reads.

    Nothing is recorded. Other hooks stay on; like those of a `Session`, the ones here come before
    them where they patch and after them where they look.

    Raises:
        InputError: The destination did not run.
        AnatomyError: The model computes something else there than the anatomy says.
    """
    site = next(one for one in anatomy.dests if one.module_name == dest.module_name)
    shape = (change.shape[0], change.shape[1])
    delta = Delta((dest.slot,), None, change[None])
    seen: dict[str, Tensor] = {}
    patched: set[int] = set()
    check = PassCheck(anatomy.verified)

    def keep(name: str, tensor: Tensor) -> None:
        seen[name] = tensor

    def patch(number: int, reader: Reader, tensor: Tensor) -> Tensor:
        patched.add(number)
        whole = unflattened(tensor, shape)
        if reader.norm is None:
            return add_delta(whole, delta).view_as(tensor)
        if "stream" not in seen:
            raise did_not_run(dest.name)
        stream = unflattened(seen["stream"], shape)
        check.read(site, reader, delta.heads, stream, whole)
        read = delta.on(stream, Scratch())
        new = reader.project(read, delta.heads)
        return replace_heads(whole, len(site.names), delta, new).view_as(tensor)

    scope = Scope()

    def run() -> object:
        for number, reader in enumerate(site.readers):
            attach(scope, reader.point, partial(patch, number, reader), first=True)
        attach(scope, site.stream, partial(keep, "stream"))
        attach(scope, anatomy.logits, partial(keep, "logits"))
        return model(prompts.tokens, **prompts.forward)

    output = scope.during(run)
    if len(patched) < len(site.readers) or "logits" not in seen:
        raise did_not_run(dest.name)
    check.settle()
    if isinstance(output, Tensor) and output.shape == seen["logits"].shape:
        return output
    return anatomy.finish_logits(seen["logits"])
