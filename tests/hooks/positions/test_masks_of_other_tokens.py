"""Masks that describe other tokens than the layer's, and masks that do not arrive at the layer's model."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import (
    BertConfig,
    BertModel,
    FNetConfig,
    FNetModel,
    PerceiverConfig,
    PerceiverForMaskedLM,
    T5Config,
    T5Model,
)

from mi_crow_lightning import HookCallback
from mi_crow_lightning.errors import HookError
from mi_crow_lightning.hooks import ActivationStatistics, SteeringController, attached
from mi_crow_lightning.metrics import Histogram
from tests.hooks.positions.masks import Mask, mask_of
from tests.models import trainer

IDS = torch.tensor([[5, 6, 0, 0, 0, 0], [7, 8, 9, 10, 11, 12]])
REAL = IDS != 0
TEXT = torch.tensor([[1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0]])
ONE: dict[str, Any] = dict(statistics=["mean"], histogram=False)


class CrossAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v = nn.Linear(8, 8), nn.Linear(5, 8), nn.Linear(5, 8)

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor, attention_mask: Tensor) -> Tensor:
        q, k, v = self.to_q(hidden_states), self.to_k(encoder_hidden_states), self.to_v(encoder_hidden_states)
        return nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=attention_mask)


class Denoiser(nn.Module):
    """A cross-attention as in diffusers: the mask becomes a bias (B, 1, keys) on the way in."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = CrossAttention()

    def forward(self, sample: Tensor, encoder_hidden_states: Tensor, encoder_attention_mask: Tensor) -> Tensor:
        bias = ((1 - encoder_attention_mask.float()) * -10000.0)[:, None]
        attended: Tensor = self.attention(sample, encoder_hidden_states, attention_mask=bias)
        return attended


@pytest.mark.parametrize("pixels", [4, 6])
def test_a_mask_of_keys_is_not_laid_on_queries(pixels: int) -> None:
    net, sample, text = Denoiser(), torch.randn(2, pixels, 8), torch.randn(2, 6, 5)
    hook = ActivationStatistics("attention.to_q", **ONE)
    with torch.no_grad(), attached(net, hook) as layers:
        net(sample, text, TEXT)
        (reading,) = layers.take_readings()
        assert reading.value == pytest.approx(net.attention.to_q(sample).mean().item(), rel=1e-5, abs=1e-7)
    with torch.no_grad(), attached(net, SteeringController("attention.to_q", torch.ones(8), strength=3.0)):
        steered = net(sample, text, TEXT)
    assert (steered != net(sample, text, TEXT)).any(-1).all()


def test_a_mask_of_keys_is_laid_on_keys() -> None:
    net, sample, text = Denoiser(), torch.randn(2, 6, 8), torch.randn(2, 6, 5)
    with torch.no_grad(), attached(net, ActivationStatistics("attention.to_k", **ONE)) as layers:
        net(sample, text, TEXT)
        (reading,) = layers.take_readings()
    expected = net.attention.to_k(text)[TEXT.bool()].mean().item()
    assert reading.value == pytest.approx(expected, rel=1e-5, abs=1e-7)


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.block = nn.Embedding(64, 8), nn.Linear(8, 8)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        out: Tensor = self.block(self.embed(input_ids))
        return out


class Keywords(Inner):
    def forward(self, input_ids: Tensor, **kwargs: Any) -> Tensor:  # type: ignore[override]
        return super().forward(input_ids)


class Outer(nn.Module):
    """A model that takes a mask and does not hand it on, as RWKV's."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        out: Tensor = self.inner(input_ids)
        return out


def test_a_mask_that_the_outer_model_keeps_for_itself_is_asked_for() -> None:
    for inner in (Inner(), Keywords()):
        assert mask_of(Outer(inner), "inner.block", input_ids=IDS, attention_mask=REAL.long()) == REAL.int().tolist()


class Replaces(Outer):
    """Hands on another mask than it is given."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        out: Tensor = self.inner(input_ids, attention_mask=REAL.flip(0).long())
        return out


def test_the_mask_that_the_inner_model_is_given_comes_first() -> None:
    found = mask_of(Replaces(Inner()), "inner.block", input_ids=IDS, attention_mask=REAL.long())
    assert found == REAL.flip(0).int().tolist()


def test_a_mask_among_other_keywords_is_read() -> None:
    assert mask_of(Keywords(), "block", input_ids=IDS, attention_mask=REAL.long()) == REAL.int().tolist()


@pytest.mark.skipif("kwargs" not in inspect.signature(FNetModel.forward).parameters, reason="this FNet takes no mask")
def test_a_mask_that_a_model_takes_and_leaves_unread_is_read() -> None:
    sizes = dict(vocab_size=64, hidden_size=32, num_hidden_layers=2, intermediate_size=32)
    found = mask_of(FNetModel(FNetConfig(**sizes)).eval(), "encoder.layer.1", input_ids=IDS, attention_mask=REAL.long())
    assert found == REAL.int().tolist()


def test_the_mask_of_a_text_is_not_that_of_its_translation() -> None:
    """An encoder's mask stays with the encoder, even if the decoder's text is just as long."""
    torch.manual_seed(0)
    sizes = dict(vocab_size=64, d_model=32, d_kv=8, d_ff=32, num_layers=2, num_heads=4, decoder_start_token_id=0)
    model = T5Model(T5Config(**sizes)).eval()
    call = dict(input_ids=IDS, attention_mask=REAL.long(), decoder_input_ids=IDS.flip(0) + 1)
    assert mask_of(model, "encoder.block.1", **call) == REAL.int().tolist()
    assert mask_of(model, "decoder.block.1", **call) == torch.ones(2, 6, dtype=torch.int).tolist()


class Embedder(nn.Module):
    """Calls ``forward`` of its model itself, as sentence-transformers 6.2 does: no hook of that model runs."""

    def __init__(self) -> None:
        super().__init__()
        sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
        self.model = BertModel(BertConfig(vocab_size=50, **sizes))

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        out: Tensor = self.model.forward(**batch).last_hidden_state
        return out


def mean_in_an_embedder(batch: Any) -> tuple[float, Tensor]:
    torch.manual_seed(0)
    net, seen, layer = Embedder().eval(), [], "model.encoder.layer.1.intermediate"
    net.get_submodule(layer).register_forward_hook(lambda module, args, out: seen.append(out.double()))
    with torch.no_grad(), attached(net, ActivationStatistics(layer, **ONE)) as layers:
        layers.begin_batch(None, batch)
        net({"input_ids": IDS, "attention_mask": REAL.long()})
        (reading,) = layers.take_readings()
    return reading.value, seen[0]


def test_where_the_model_was_not_called_the_batch_says_which_tokens_are_real() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        value, x = mean_in_an_embedder({"input_ids": IDS, "attention_mask": REAL.long()})
    assert value == pytest.approx(x[REAL].mean().item(), rel=1e-5)


@pytest.mark.parametrize("batch", [None, {"labels": IDS}])
def test_where_nothing_says_it_a_warning_does(batch: Any) -> None:
    with pytest.warns(UserWarning, match=r"the model around it was not called.*including padding.*token_mask"):
        value, x = mean_in_an_embedder(batch)
    assert value == pytest.approx(x.mean().item(), rel=1e-5)


@pytest.mark.parametrize("floats", [False, True])
def test_torchs_own_padding_masks(floats: bool) -> None:
    """True is padding there; inside, nn.TransformerEncoder makes an additive mask of it."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, dropout=0.0)
    encoder = nn.TransformerEncoder(layer, 2).train()
    padding = torch.zeros(2, 6).masked_fill(~REAL, -torch.inf) if floats else ~REAL
    for at in ("layers.1.linear1", "layers.0"):
        found = mask_of(encoder, at, src=torch.randn(2, 6, 32), src_key_padding_mask=padding)
        assert found == REAL.int().tolist()


class Embeds(nn.Module):
    """A model that takes a text's mask and does not hand it on to torch's encoder."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=batch_first, dropout=0.0)
        self.embed, self.encoder = nn.Embedding(64, 32), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.batch_first = batch_first

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.embed(input_ids)
        out: Tensor = self.encoder(x if self.batch_first else x.transpose(0, 1))
        return out


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("tokens", [2, 6])
def test_the_mask_of_a_text_around_torchs_own_modules_is_no_mask_of_padding(batch_first: bool, tokens: int) -> None:
    """In theirs True is padding; in one of two tokens for two texts, a mask laid across would fit."""
    real = REAL[:, 1:3] if tokens == 2 else REAL
    found = mask_of(
        Embeds(batch_first).train(), "encoder.layers.1", input_ids=IDS[:, :tokens], attention_mask=real.long()
    )
    assert found == (real if batch_first else real.T).int().tolist()


def test_torchs_decoder_has_a_mask_of_its_own() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerDecoderLayer(32, 4, 64, batch_first=True, dropout=0.0)
    decoder = nn.TransformerDecoder(layer, 2).train()
    call = dict(tgt=torch.randn(2, 6, 32), memory=torch.randn(2, 6, 32))
    call |= dict(tgt_key_padding_mask=~REAL, memory_key_padding_mask=~REAL.flip(0))
    assert mask_of(decoder, "layers.1.linear1", **call) == REAL.int().tolist()


class Block(nn.Module):
    """A user's own block, called with a mask of pairs whose keys may be others than its tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor) -> Tensor:
        out: Tensor = self.linear(hidden_states)
        return out


def test_a_mask_of_more_keys_than_a_block_has_tokens_is_not_cut_to_fit() -> None:
    keys = (torch.arange(6) < 3).expand(2, 1, 4, 6)
    with pytest.warns(UserWarning, match=r"the attention mask \(2, 6\) does not fit the activation \(2, 4, 8\)"):
        assert mask_of(Block(), "linear", hidden_states=torch.randn(2, 4, 8), attention_mask=keys) == [[1] * 4] * 2


def test_a_mask_of_fewer_queries_than_tokens_is_not_laid_on_them() -> None:
    pairs = REAL[:, None, None, :].expand(2, 1, 3, 6)
    with pytest.raises(HookError, match=r"does not fit the activation"):
        mask_of(Inner(), "block", "last", input_ids=IDS[:, :4], attention_mask=pairs)


def test_a_model_called_with_the_batchs_own_tokens_has_the_batchs_mask() -> None:
    model, detector = Inner(), Mask("block")
    with attached(model, detector) as layers:
        layers.begin_batch(None, {"input_ids": IDS, "attention_mask": REAL.long()})
        model(IDS)
        model(IDS.clone())  # other tokens, for all that is known
    assert detector.calls[0].tolist() == REAL.tolist() and detector.calls[1].all()


class Translator(nn.Module):
    """Takes two texts, and calls a decoder that does not say it is one."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = Inner()

    def forward(self, input_ids: Tensor, attention_mask: Tensor, decoder_input_ids: Tensor) -> Tensor:
        out: Tensor = self.decoder(decoder_input_ids)
        return out


class Wrapped(nn.Module):
    """Takes one text, and makes the other itself."""

    def __init__(self) -> None:
        super().__init__()
        sizes = dict(vocab_size=64, d_model=32, d_kv=8, d_ff=32, num_layers=2, num_heads=4, decoder_start_token_id=0)
        self.model = T5Model(T5Config(**sizes)).eval()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        out: Tensor = self.model(input_ids, attention_mask, decoder_input_ids=input_ids + 1).last_hidden_state
        return out


def test_the_mask_of_one_text_is_not_asked_for_the_other() -> None:
    whole, call = torch.ones(2, 6, dtype=torch.int).tolist(), dict(input_ids=IDS, attention_mask=REAL.long())
    assert mask_of(Translator(), "decoder.block", decoder_input_ids=IDS + 1, **call) == whole
    assert mask_of(Wrapped(), "model.decoder.block.1", **call) == whole
    assert mask_of(Wrapped(), "model.encoder.block.1", **call) == REAL.int().tolist()


def test_the_mask_of_an_outer_model_ends_with_its_call() -> None:
    outer, detector = Outer(Inner()), Mask("inner.block")
    with attached(outer, detector):
        outer(IDS, attention_mask=REAL.long())
        outer.inner(IDS)
    assert detector.calls[0].tolist() == REAL.tolist() and detector.calls[1].all()


@pytest.mark.parametrize("is_self", [True, False])
def test_the_padding_of_keys_is_that_of_queries_in_self_attention_alone(is_self: bool) -> None:
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    x = torch.randn(2, 6, 8)
    keys = x if is_self else torch.randn(2, 6, 8)
    net = nn.ModuleDict({"attention": attention})
    detector = Mask("attention")
    with attached(net, detector):
        attention(x, keys, keys, key_padding_mask=~REAL)
    assert detector.calls[0].tolist() == (REAL if is_self else torch.ones_like(REAL)).tolist()


class Evaluates(pl.LightningModule):
    """Calls a model whose batch does not name the mask as transformers does."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        if "real" in batch:
            self.net(batch["ids"], attention_mask=batch["real"])
        else:
            self.net.inner(batch["ids"])  # type: ignore[operator]


def compiled(where: str) -> nn.Module:
    """A model that keeps its mask for itself, compiled in one of three places."""
    torch.manual_seed(0)
    net = Outer(Inner())
    if where in ("outer", "inner"):
        (net if where == "outer" else net.inner).compile(backend="eager")
    wrapped: Any = torch.compile(net, backend="aot_eager") if where == "wrapped" else net
    return wrapped  # type: ignore[no-any-return]


@pytest.mark.parametrize("where", ["outer", "inner", "wrapped"])
def test_in_a_graph_the_mask_of_an_outer_model_is_asked_for_too(where: str) -> None:
    batches = [dict(ids=IDS.roll(i, 0).clone(), real=REAL.roll(i, 0).long()) for i in range(3)]
    found = []
    for place in ("nowhere", where):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        watch = HookCallback(ActivationStatistics("net.inner.block", **ONE))
        data = DataLoader(batches, batch_size=None)  # type: ignore[arg-type]
        trainer(watch).validate(Evaluates(compiled(place)), data, verbose=False)
        found += [row.value for row in watch.history()]
    assert found[1] == pytest.approx(found[0], rel=1e-5) and torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    torch.manual_seed(0)
    net = Outer(Inner()).inner
    expected = torch.cat([net(one["ids"])[one["real"].bool()] for one in batches]).mean().item()
    assert found[0] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("where", ["outer", "inner"])
def test_a_graph_does_not_keep_the_mask_of_the_last_call(where: str) -> None:
    torch._dynamo.reset()
    watch = HookCallback(ActivationStatistics("net.inner.block", **ONE))
    batches: Any = [dict(ids=IDS, real=REAL.long()), dict(ids=IDS), dict(ids=IDS, real=None)]
    data: Any = DataLoader(batches, batch_size=None)
    trainer(watch).validate(Evaluates(compiled(where)), data, verbose=False)
    x: Tensor = compiled("nowhere").inner(IDS)  # type: ignore[operator]
    (found,) = (row.value for row in watch.history())
    assert found == pytest.approx(torch.cat([x[REAL], *x, *x]).mean().item(), rel=1e-5)


@pytest.mark.parametrize("layer", ["perceiver.encoder.self_attends.0", "perceiver.encoder.cross_attention"])
def test_the_mask_of_a_text_is_not_laid_on_as_many_latents(layer: str) -> None:
    sizes = dict(num_latents=6, d_latents=32, d_model=32, qk_channels=32, v_channels=32, max_position_embeddings=6)
    blocks = dict(num_blocks=1, num_self_attends_per_block=2, num_self_attention_heads=4, num_cross_attention_heads=4)
    model = PerceiverForMaskedLM(PerceiverConfig(vocab_size=64, **sizes, **blocks)).eval()
    ids, real = torch.full((2, 6), 7), torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6])
    assert mask_of(model, layer, inputs=ids, attention_mask=real) == [[1] * 6] * 2


class Reads(nn.Module):
    """Reads a text in as many learned queries as it has tokens."""

    def __init__(self, name: str, queries: int = 6) -> None:
        super().__init__()
        self.name, self.embed, self.block = name, nn.Embedding(64, 8), nn.Linear(8, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.register_parameter(name, nn.Parameter(torch.randn(queries, 8)))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        text, queries = self.embed(input_ids), getattr(self, self.name)
        read, _ = self.attention(
            queries.expand(len(text), -1, -1), text, text, key_padding_mask=attention_mask == 0, need_weights=False
        )
        out: Tensor = self.block(read)
        return out


class HasReader(nn.Module):
    """A model of a text whose reader is a module below it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.reader, self.block = nn.Embedding(64, 8), Resamples(), nn.Linear(8, 8)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        text = self.embed(input_ids)
        out: Tensor = self.block(text) + self.reader(text).mean(1, keepdim=True)
        return out


class Resamples(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.latents, self.to_q, self.out = nn.Parameter(torch.randn(1, 6, 8)), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, text: Tensor) -> Tensor:
        scores = self.to_q(self.latents) @ text.transpose(1, 2)
        out: Tensor = self.out(scores.softmax(-1) @ text)
        return out


@pytest.mark.parametrize(
    ("model", "layer", "why"),
    [
        (Reads("latents"), "block", "as many learned queries \\('latents'\\) as the text has tokens: 6"),
        (Reads("query_tokens"), "block", "'query_tokens'"),
        (Reads("inducing"), "attention", "its queries \\(2, 6, 8\\) are learned"),
        (HasReader(), "reader.out", "'latents'"),
        (HasReader(), "reader", "'latents'"),
    ],
)
def test_learned_queries_are_not_taken_for_tokens(model: nn.Module, layer: str, why: str) -> None:
    text: Any = dict(input_ids=IDS, attention_mask=REAL.long())
    with torch.no_grad(), attached(model, ActivationStatistics(layer, statistics=["mean"])) as layers:
        with pytest.warns(UserWarning, match=why):
            model(**text)
        counts = [sum(r.value.counts) for r in layers.take_readings() if isinstance(r.value, Histogram)]
    assert counts == [2 * 6 * 8]
    last = SteeringController(layer, torch.ones(8), tokens="last")
    with attached(model, last), pytest.raises(HookError, match=why):
        model(**text)


@pytest.mark.parametrize(
    ("model", "layer"), [(HasReader(), "block"), (HasReader(), "embed"), (Reads("latents", queries=4), "embed")]
)
def test_tokens_beside_learned_queries_are_tokens(model: nn.Module, layer: str) -> None:
    assert mask_of(model, layer, input_ids=IDS, attention_mask=REAL.long()) == REAL.int().tolist()


def test_an_attention_among_tokens_keeps_their_mask() -> None:
    class Attends(Reads):
        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            text = self.embed(input_ids)
            read: Tensor = self.attention(self.block(text), text, text, need_weights=False)[0]
            return read

    model = Attends("unused", queries=3)
    assert mask_of(model, "attention", input_ids=IDS, attention_mask=REAL.long()) == REAL.int().tolist()
