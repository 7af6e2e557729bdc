"""Prefill and decoding steps of a model for many sequences at once, with a KV cache per sequence."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lit_rft.generation.graphs import StepGraphs, can_capture, rows_of_graph
from lit_rft.generation.kv_cache import SlotCache
from lit_rft.generation.openings import Share, plan_shares
from lit_rft.models.accel import is_on
from lit_rft.models.accel.decoding_attention import decoding_attention
from lit_rft.models.accel.decoding_layers import DecodingLayers
from lit_rft.models.accel.packed_weights import PackedProducts
from lit_rft.models.attention_masks import attention_masks
from lit_rft.models.backbone import causal_lm, final_hidden_states, output_logits
from lit_rft.models.forward import similar_lengths

ReadOut = Callable[[nn.Module, Tensor], Tensor]


class Decoder:
    """Prefill and decode the sequences in the slots of a KV cache.

    Args:
        model: a causal language model, with or without adapters; the caller switches it to evaluation mode.
        num_slots: maximum number of sequences at the same time.
        end_of_turn_id: token that ends an utterance, also used as padding.
        max_prefill_tokens: maximum tokens per prefill pass, padding included.
        acting: makes the context of forward passes, for example with merged adapters.
        read_out: computes logits [B, V] from a model and final hidden states [B, D].
    """

    def __init__(
        self,
        model: nn.Module,
        num_slots: int,
        end_of_turn_id: int,
        *,
        max_prefill_tokens: int = 8192,
        acting: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
        read_out: ReadOut = output_logits,
    ) -> None:
        self.read_out = read_out
        self.model, self.num_slots, self.end_of_turn_id = model, num_slots, end_of_turn_id
        self.max_prefill_tokens, self.acting = max_prefill_tokens, acting
        self._config = causal_lm(model).config.get_text_config()
        self.cache = SlotCache(self._config.num_hidden_layers, num_slots)
        self._products = PackedProducts(model, num_slots)
        self._layers = DecodingLayers(model, num_slots)
        self.tokens_read = 0  # total, without padding
        self.graphs = StepGraphs(model, end_of_turn_id) if can_capture(model) else None
        self._state: tuple[Any, ...] = ()  # identifies the weights and their packed form

    @contextlib.contextmanager
    def ready(self) -> Iterator[None]:
        """Prepare the model for decoding: every `read` and `step` is within this context."""
        with decoding_attention(self.model), self.acting(), self._products.active(), self._layers.active():
            if self.graphs is not None:  # acting may have exchanged the weights
                casts = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
                self._state = *casts, *(weight.data_ptr() for weight in self.model.parameters())
            yield

    def read(self, new_ids: dict[int, list[int]]) -> dict[int, Tensor]:
        """Prefill in groups of similar length; the slots get consecutive rows, in the order of the result.

        Openings that empty slots share, with one another or with other slots, are read once.

        Returns:
            slot -> logits [V] after its last token.
        """
        beginning = self._shares(new_ids)  # empty slots
        shares = dict.fromkeys(new_ids, Share()) | beginning
        rest = {slot: ids[shares[slot].length :] for slot, ids in new_ids.items()}
        passes = []
        for step in range(1 + max((share.step for share in shares.values()), default=0)):
            lengths = {slot: len(ids) for slot, ids in rest.items() if shares[slot].step == step}
            passes += similar_lengths(lengths, self.max_prefill_tokens)
        self.cache.arrange([slot for group in passes for slot in group])
        logits: dict[int, Tensor] = {}
        for group in passes:
            self._copy(shares, group)
            try:
                logits.update(zip(group, self._forward(group, [rest[slot] for slot in group]), strict=True))
            except BaseException:
                for slot in beginning.keys() & set(group):  # as before the copy
                    self.cache.clear(slot)
                raise
            for slot in beginning.keys() & set(group):
                self.cache.openings[slot] = list(new_ids[slot])
        return logits

    def _shares(self, new_ids: dict[int, list[int]]) -> dict[int, Share]:
        """Return what empty slots copy; nothing on a GPU, where a further pass costs as much as thousands of tokens."""
        if not is_on(self.model, "shared_openings") or causal_lm(self.model).device.type != "cpu":
            return {}
        new = {slot: ids for slot, ids in new_ids.items() if not self.cache.lengths[slot]}
        cached = {slot: ids for slot, ids in enumerate(self.cache.openings) if ids and new}
        return plan_shares(cached, new)

    def _copy(self, shares: dict[int, Share], slots: Sequence[int]) -> None:
        targets: dict[tuple[int, int], list[int]] = {}
        for slot in slots:
            if (source := shares[slot].source) is not None:
                targets.setdefault((source, shares[slot].length), []).append(slot)
        for (source, length), copies in targets.items():
            self.cache.copy_prefix(source, copies, length)

    def step(self, slots: Sequence[int], tokens: Sequence[int]) -> Tensor:
        """Decode one token in each slot.

        Returns:
            Logits [B, V].
        """
        self.cache.arrange(slots)
        logits = None if self.graphs is None else self._step_by_graph(self.graphs, slots, tokens)
        return self._forward(slots, [[token] for token in tokens]) if logits is None else logits

    @property
    def reads_ahead(self) -> bool:
        """True if `read_ahead` pays: on a GPU captured steps of one token are faster."""
        return causal_lm(self.model).device.type == "cpu"

    def read_ahead(self, slots: Sequence[int], tokens: list[list[int]]) -> list[Tensor]:
        """Compute one or more tokens in each slot, of which `keep` tells how many stay.

        Returns:
            For each slot the logits after each of its tokens, [T, V].
        """
        self.cache.arrange(slots)
        counts = [len(ids) for ids in tokens]
        hidden = self._pass(slots, tokens)
        places = [(row, column) for row, count in enumerate(counts) for column in range(count)]
        rows, columns = torch.tensor(places, device=hidden.device).T
        return list(self.read_out(self.model, hidden[rows, columns]).split(counts))

    def keep(self, slots: Sequence[int], counts: Sequence[int]) -> None:
        """Keep the first tokens of the latest `read_ahead` of each slot; later passes overwrite the others."""
        self.cache.commit(slots, counts)
        self.tokens_read += sum(counts)

    def _step_by_graph(self, graphs: StepGraphs, slots: Sequence[int], tokens: Sequence[int]) -> Tensor | None:
        """Decode with a pass of fixed shape; None without one (yet)."""
        columns = self.cache.next_columns(rows_of_graph(len(slots), self.num_slots))
        graphs.keep_only_for((self.cache.place, self._state))
        logits = graphs.step(self._static_step, tokens, columns)
        if logits is not None:
            self.cache.commit(slots, [1] * len(slots))
            self.tokens_read += len(slots)
        return logits

    def _static_step(self, input_ids: Tensor, columns: Tensor) -> Tensor:
        """Compute the logits [R, V] of one token [R, 1] of each of the cache's first rows, at positions [R, 1]."""
        hidden = self._hidden(input_ids, columns, self.cache.prepare_rows(columns))
        return self.read_out(self.model, hidden[:, -1])

    def _forward(self, slots: Sequence[int], new_ids: list[list[int]]) -> Tensor:
        """Compute the slots' new tokens in one pass; return logits after the last real token of each, [B, V]."""
        counts = [len(ids) for ids in new_ids]
        hidden = self._pass(slots, new_ids)
        self.keep(slots, counts)
        last = torch.tensor(counts, device=hidden.device) - 1
        return self.read_out(self.model, hidden[torch.arange(len(slots), device=hidden.device), last])

    def _pass(self, slots: Sequence[int], new_ids: list[list[int]]) -> Tensor:
        """Compute the last hidden states [B, T, D] of the slots' new tokens, padded."""
        device = next(self.model.parameters()).device
        counts = [len(ids) for ids in new_ids]
        width = max(counts)
        input_ids = torch.tensor([ids + [self.end_of_turn_id] * (width - len(ids)) for ids in new_ids], device=device)
        columns, visible = self.cache.prepare(slots, width, device)
        # padding repeats the last position: a table of positions (GPT-2, OPT) may end there
        steps = torch.arange(width, device=device).clamp(max=torch.tensor(counts, device=device)[:, None] - 1)
        return self._hidden(input_ids, columns[:, :1] + steps, visible)

    def _hidden(self, input_ids: Tensor, position_ids: Tensor, visible: Tensor) -> Tensor:
        """Compute the last hidden states [B, T, D] of a pass for which the cache is prepared."""
        keys = torch.arange(visible.shape[-1], device=visible.device)
        masks = attention_masks(visible, position_ids, keys, self._config, causal_lm(self.model).dtype)
        return final_hidden_states(
            self.model, input_ids, position_ids, attention_mask=masks, cache=self.cache  # type: ignore[arg-type]
        )  # fmt: skip
