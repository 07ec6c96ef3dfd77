"""Places in TransformerLens' names, ``blocks.12.hook_resid_post``, as addresses of the layers whose output they are."""

from __future__ import annotations

import re

from mi_crow_lightning._foreign_files import Damaged, check_name
from mi_crow_lightning._shown import shortened
from mi_crow_lightning.vectors.formats.blocks import address_of

__all__ = ["layer_of"]

_HOOK = re.compile(
    r"blocks\.(?P<block>[0-9]{1,9})\.(?P<place>hook_resid_pre|hook_resid_post|hook_mlp_out|hook_attn_out)"
)
_PARTS = {"hook_resid_post": "", "hook_mlp_out": "mlp", "hook_attn_out": "attn"}


def layer_of(hook_name: str | None) -> str:
    """Return the layer whose output ``hook_name`` is: in TransformerLens' names, or a module's own.

    Raises:
        Damaged: there is no name, or its place is not the output of a layer.

    Examples:
        >>> layer_of("blocks.12.hook_resid_post"), layer_of("blocks.12.hook_resid_pre"), layer_of("h.3")
        ('block:12', 'block:11', 'h.3')
    """
    if not hook_name or hook_name == "__metadata__":  # which no layer can be named in a vector's file
        raise Damaged("has no hook_name: give layer=")
    check_name("hook", hook_name)
    hook = _HOOK.fullmatch(hook_name)
    if hook is None:
        if "hook_" in hook_name:
            raise Damaged(
                f"has the place {shortened(repr(hook_name))}, which is not the output of a block, its attention or its "
                "MLP: give layer="
            )
        return hook_name
    block, place = int(hook["block"]), hook["place"]
    if place != "hook_resid_pre":
        return address_of(block, _PARTS[place])
    if block == 0:
        raise Damaged(
            f"has the place {hook_name!r}, which is the input of the first block, and not the output of another: give "
            "layer=, the embedding"
        )
    return address_of(block - 1)  # what goes into a block comes out of the one before
