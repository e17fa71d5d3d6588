"""A decoder with dense or MoE feed-forwards and, in chosen layers, a conditional memory."""

from typing import Any

import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import MoeCausalLMOutputWithPast, MoeModelOutputWithPast
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .attention import Attention
from .cache import HistoryLayer, history_layers
from .compression import compress_vocabulary
from .configuration_engram import EngramConfig
from .decoder_layer import EngramDecoderLayer
from .forward_keys import check_lengths, passed_on
from .hashing import NgramHash, draw_multipliers
from .hyper_connections import hyper_head
from .initial_weights import fill
from .linear import is_plain
from .loss import IGNORE_INDEX, linear_cross_entropy
from .masks import default_position_ids, present_positions, what_is_seen
from .memories import MEMORIES, memory_makers, token_history
from .moe import Router
from .norm import RMSNorm
from .offload import ATTACHED_KEYS, HostTable, attach_tables
from .packing import look_back, text_numbers
from .residual import add_and_norm
from .resize import check_size, follow_size, wanted_size
from .rotary import RotaryEmbedding

AUTO_MAP = {
    "AutoConfig": "configuration_engram.EngramConfig",
    "AutoModel": "modeling_engram.EngramModel",
    "AutoModelForCausalLM": "modeling_engram.EngramForCausalLM",
}
"""Which of the classes that lie beside saved weights transformers' Auto classes make."""


class EngramPreTrainedModel(PreTrainedModel):
    """Loading, saving and initial weights."""

    config: EngramConfig
    config_class = EngramConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["EngramDecoderLayer"]  # noqa: RUF012 - transformers' name
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _keep_in_fp32_modules_strict = [  # noqa: RUF012
        *("e_score_correction_bias", "attn_hc", "ffn_hc", "hc_head")
    ]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_record_outputs = {  # noqa: RUF012
        "hidden_states": EngramDecoderLayer,
        "attentions": OutputRecorder(Attention, index=1),
        "router_logits": OutputRecorder(Router, index=0),
    }

    @classmethod
    def from_pretrained(cls, source: Any, *args: Any, **kwargs: Any) -> Any:
        """Load as every transformers model; tables beside the device are left where they are."""
        loaded = super().from_pretrained(source, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        attach_tables(model, source, **kwargs)
        return loaded

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Save as every transformers model; the configuration names the code that is saved, too."""
        self.config.auto_map = dict(AUTO_MAP)
        super().save_pretrained(*args, **kwargs)

    def resize_token_embeddings(
        self,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        **kwargs: Any,
    ) -> nn.Embedding:
        """Let the vocabulary grow or shrink at its end, as every transformers model's.

        To a memory each new token is one of a kind: it is merged with none whose text is alike, and
        old n-grams keep their rows. Do not call ``set_tokenizer`` afterwards, which is for a model
        whose rows have not been trained.

        Raises:
            ValueError: a size that a memory cannot follow.
        """
        size = wanted_size(new_num_tokens, pad_to_multiple_of, self.config.vocab_size)
        check_size(self.base_model, size)
        embedding = super().resize_token_embeddings(new_num_tokens, pad_to_multiple_of, **kwargs)
        follow_size(self.base_model, self.config.vocab_size)
        return embedding

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Fill one module; transformers builds models without memory and calls this afterwards."""
        super()._init_weights(module)
        fill(module, self.config)


class EngramModel(EngramPreTrainedModel):
    """The decoder without its head."""

    _auto_class = "AutoModel"

    def __init__(self, config: EngramConfig) -> None:
        super().__init__(config)
        makers = memory_makers(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            EngramDecoderLayer(config, layer, makers.get(layer))
            for layer in range(config.num_hidden_layers)
        )
        self.hc_head = hyper_head(config)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_emb = RotaryEmbedding(config)
        self.token_history = token_history(config)
        self.gradient_checkpointing = False
        if (config.engram_storage, config.engram_row_quantization) != ("device", "none"):
            self._keys_to_ignore_on_load_unexpected = {ATTACHED_KEYS}
        self.post_init()

    def memory(self, layer: int) -> Any:
        """Return the memory of a 0-based layer."""
        block = self.layers[layer]
        return block.mlp.memory if block.engram is None else block.engram

    @torch.no_grad()
    def set_compression(self, compressed_ids: torch.Tensor) -> None:
        """Set the compression map (V,) and draw the hash multipliers that fit its range."""
        if self.token_history is None:
            return
        size = self.config.vocab_size
        if compressed_ids.shape != (size,) or int(compressed_ids.min()) < 0:
            given = f"shape {tuple(compressed_ids.shape)}, least {int(compressed_ids.min())}"
            raise ValueError(f"compressed_ids: {given}; must be ({size},) numbers >= 0")
        self.token_history.compressed_ids.copy_(compressed_ids)
        classes = int(compressed_ids.max()) + 1
        for layer in self.config.engram_layers:
            index = self.memory(layer).hash
            if isinstance(index, NgramHash):
                count = len(index.multipliers)
                drawn = draw_multipliers(layer, self.config.engram_seed, count, classes)
                index.multipliers.copy_(torch.tensor(drawn))

    def set_ngrams(self, ids: torch.Tensor) -> None:
        """Give the most frequent n-grams of ``ids`` (T,) rows of their own (``exact`` index)."""
        if self.token_history is None or self.config.engram_index != "exact":
            return
        for layer in self.config.engram_layers:
            self.memory(layer).hash.list_ngrams(self.token_history, ids)

    def ngram_rows(self, input_ids: torch.Tensor) -> dict[int, torch.Tensor]:
        """Return layer -> (B, T, heads) table rows of ``input_ids`` (B, T); -1 marks padding."""
        return self._rows(input_ids, input_ids.shape[1])

    def _rows(
        self, ids: torch.Tensor, new: int, texts: torch.Tensor | None = None
    ) -> dict[int, torch.Tensor]:
        if self.token_history is None:
            return {}
        seen = look_back(self.token_history, ids, new, texts)
        return {layer: self.memory(layer).hash(seen) for layer in self.config.engram_layers}

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        engram_rows: dict[int, torch.Tensor] | None = None,
        **kwargs: Any,
    ) -> MoeModelOutputWithPast:
        """Return the last hidden states (B, T, D), after the final norm.

        Args:
            input_ids: (B, T); needed by the memory even where ``inputs_embeds`` (B, T, D) is given.
            attention_mask: (B, past + T), 0 at padding; or transformers' 4-D mask.
            position_ids: (B or 1, T); by default counted from the first token that is no padding.
                Where they do not count on by one, another text begins in the row: neither
                attention nor memory reaches over it, and no cache is made.
            past_key_values: cache of earlier positions; holds the memory's look-back too. Its rows
                are one text each.
            inputs_embeds: (B, T, D) instead of the ids' embeddings.
            use_cache: return a cache, making one if none is given.
            engram_rows: layer -> (B, T, heads), instead of hashing ``input_ids``.
            **kwargs: ``output_hidden_states``, ``output_attentions``, ``output_router_logits``,
                what the attention implementation takes, and what trainers' collators add:
                ``cu_seq_lens_q`` and ``seq_idx`` beside ``position_ids`` that say the same, and
                ``token_type_ids``, which change nothing.
        """
        options = passed_on(kwargs, position_ids)
        if input_ids is None and inputs_embeds is None:
            raise ValueError("give input_ids or inputs_embeds")
        embeds = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        batch, length, _ = embeds.shape
        remembers = self.token_history is not None
        texts = text_numbers(position_ids, attention_mask, past_key_values, batch, remembers)
        check_lengths(options, batch, texts)
        if use_cache and past_key_values is None and texts is None:
            past_key_values = DynamicCache(config=self.config)
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        present = present_positions(attention_mask, int(past), length)
        if position_ids is None:
            position_ids = default_position_ids(attention_mask, int(past), length, embeds.device)
        seen = what_is_seen(self.config, embeds, attention_mask, past_key_values, int(past), texts)
        options |= seen.options
        rows, histories = self._look_back(input_ids, present, past_key_values, engram_rows, texts)
        self._fetch(rows)
        inputs = MEMORIES[self.config.engram_memory].inputs
        streams = self.config.residual_streams
        hidden = embeds if streams == 1 else embeds.repeat(1, 1, streams)
        rotary = self.rotary_emb(embeds, position_ids)
        for number, layer in enumerate(self.layers):
            given = {
                "rows": rows.get(number),
                "embeds": embeds,
                "present": present,
                "history": histories.get(number),
                "texts": texts,
            }
            hidden = layer(
                hidden,
                lookup={name: given[name] for name in inputs},
                position_embeddings=rotary,
                attention_mask=seen.masks[self.config.layer_types[number]],
                past_key_values=past_key_values,
                **options,
            )
        if self.hc_head is not None:
            hidden = self.hc_head(hidden)
        return MoeModelOutputWithPast(
            last_hidden_state=add_and_norm(hidden, None, self.norm).normed,
            past_key_values=past_key_values,
        )

    def _fetch(self, rows: dict[int, torch.Tensor]) -> None:
        """Begin to read the rows of tables that do not lie on the device."""
        for layer, wanted in rows.items():
            table = self.memory(layer).table
            if isinstance(table, HostTable):
                table.fetch(wanted)

    def _look_back(
        self,
        input_ids: torch.Tensor | None,
        present: torch.Tensor | None,
        cache: Cache | None,
        given: dict[int, torch.Tensor] | None,
        texts: torch.Tensor | None,
    ) -> tuple[dict[int, torch.Tensor], dict[int, HistoryLayer]]:
        """Return each memory layer's rows and the history of its convolution."""
        layers = self.config.engram_layers
        if self.token_history is None:
            return {}, {}
        if input_ids is None:
            if given is None or cache is not None:
                raise ValueError("the memory hashes token ids: give input_ids beside inputs_embeds")
            return given, {}
        ids = input_ids if present is None else input_ids.masked_fill(~present, -1)
        histories: dict[int, HistoryLayer] = {}
        if cache is not None:
            before = int(cache.get_seq_length())
            first, *others = history_layers(cache, len(self.layers), 1 + len(layers))
            if first.get_seq_length() != before:
                raise ValueError(
                    f"past_key_values holds {before} positions, but the ids of "
                    f"{first.get_seq_length()}: it must come whole from this model"
                )
            ids = first.append(ids.unsqueeze(-1)).squeeze(-1)
            histories = dict(zip(layers, others, strict=True))
        if given is not None:
            return given, histories
        return self._rows(ids, input_ids.shape[1], texts), histories


class EngramForCausalLM(EngramPreTrainedModel, GenerationMixin):
    """The decoder with its language-model head."""

    _auto_class = "AutoModelForCausalLM"
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: EngramConfig) -> None:
        super().__init__(config)
        self.model = EngramModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def create_masks_for_generate(
        self, attention_mask: torch.Tensor | None, **_: Any
    ) -> torch.Tensor | None:
        """Leave the mask as it is, (B, past + T): it tells the memory where padding is."""
        return attention_mask

    def set_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Fill the compression map from ``tokenizer``; nothing to do without compression."""
        history = self.model.token_history
        if history is not None and history.compressed:
            self.model.set_compression(compress_vocabulary(tokenizer, self.config.vocab_size))

    def set_ngrams(self, ids: torch.Tensor) -> None:
        """List the n-grams of a text, ``ids`` (T,); nothing to do unless the index is exact.

        Call it after ``set_tokenizer``: n-grams are listed as the memory sees them.
        """
        self.model.set_ngrams(ids)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        loss_only: bool | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        shift_labels: torch.Tensor | None = None,
        engram_rows: dict[int, torch.Tensor] | None = None,
        **kwargs: Any,
    ) -> MoeCausalLMOutputWithPast:
        """Return logits (B, T, V) and, with ``labels``, the mean next-token loss in nats.

        Args:
            input_ids: (B, T).
            attention_mask: see :meth:`EngramModel.forward`, also for the next four.
            position_ids: (B, T).
            past_key_values: cache.
            inputs_embeds: (B, T, D).
            use_cache: return a cache.
            labels: (B, T), the input ids; shifted here; -100 is not counted.
            logits_to_keep: last positions to make logits for (0: all), or their indices.
            loss_only: with ``labels``, leave the logits out (None) and never build them; by
                default while training.
            num_items_in_batch: divide the summed loss by this instead of the counted labels.
            shift_labels: (B, T), labels moved one ahead already, to be counted instead.
            engram_rows: see :meth:`EngramModel.forward`.
            **kwargs: see :meth:`EngramModel.forward`.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            engram_rows=engram_rows,
            **kwargs,
        )
        hidden = outputs.last_hidden_state
        loss = None
        if labels is not None:
            loss = self._loss(hidden, labels, shift_labels, num_items_in_batch)
        logits = None
        if labels is None or not (self.training if loss_only is None else loss_only):
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else None
            logits = self.lm_head(hidden[:, logits_to_keep if kept is None else kept])
        return MoeCausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            router_logits=outputs.router_logits,
        )

    def _loss(
        self,
        hidden: torch.Tensor,
        labels: torch.Tensor,
        shifted: torch.Tensor | None,
        items: torch.Tensor | int | None,
    ) -> torch.Tensor:
        """Return the mean loss of predicting ``labels`` (B, T) one position ahead."""
        if shifted is None:
            shifted = nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)
        ahead = shifted.to(hidden.device).flatten()
        if isinstance(items, torch.Tensor):
            items = items.to(hidden.device)
        if is_plain(self.lm_head):
            weight = self.lm_head.weight
            return linear_cross_entropy(hidden.flatten(0, 1), weight, ahead, items=items)
        # An adapter or a hook decides with its weight what the logits are.
        logits = self.lm_head(hidden).flatten(0, 1).float()
        if items is None:
            return nn.functional.cross_entropy(logits, ahead)
        return nn.functional.cross_entropy(logits, ahead, reduction="sum") / items
