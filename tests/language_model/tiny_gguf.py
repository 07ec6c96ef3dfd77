"""A tiny Llama as a GGUF file."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np


def write_llama(path: Path, seed: int = 0, blocks: int = 2, width: int = 32, tokens: int = 40) -> Path:
    """Write a Llama with weights in 8 bits where their rows allow it, so that there is something to unpack."""
    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(width)
    writer.add_block_count(blocks)
    writer.add_feed_forward_length(2 * width)
    writer.add_head_count(4)
    writer.add_head_count_kv(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(width // 4)
    writer.add_vocab_size(tokens)
    shapes = {"token_embd": (tokens, width), "output_norm": (width,), "output": (tokens, width)}
    for block in range(blocks):
        square = dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output"), (width, width))
        mlp = {"ffn_gate": (2 * width, width), "ffn_up": (2 * width, width), "ffn_down": (width, 2 * width)}
        norms = dict.fromkeys(("attn_norm", "ffn_norm"), (width,))
        shapes |= {f"blk.{block}.{name}": shape for name, shape in {**square, **mlp, **norms}.items()}
    kind = gguf.GGMLQuantizationType.Q8_0
    for name, shape in shapes.items():
        weights = rng.normal(size=shape).astype(np.float32)
        if len(shape) == 1:
            writer.add_tensor(f"{name}.weight", weights)
        else:
            packed = gguf.quants.quantize(weights, kind)
            writer.add_tensor(f"{name}.weight", packed, raw_shape=packed.shape, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
