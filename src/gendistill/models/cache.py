"""Every operation on caches: new ones, rows of one, fixed size, bytes, and the ring buffers of windows.

A layer of attention keeps keys and values of all tokens, [B, key heads, T, D] each. A linear layer keeps its state
[B, H, K, V] in float32 and the convolution's last inputs [B, C, kernel], whatever T is. So does a window: its keys and
values lie in a ring buffer, which to transformers is another state of a linear layer.
"""

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DynamicCache,
    DynamicLayer,
    LinearAttentionLayer,
    StaticLayer,
)

from gendistill.errors import UserError
from gendistill.models.configuration import GendistillConfig
from gendistill.models.padding import Padding
from gendistill.ops.dispatch import takes_kernels
from gendistill.ops.window import Past
from gendistill.ops.window_kernels import write_ring

# Where a window's tensors lie among the states of transformers' linear layer, behind the recurrence's own, number 0.
RING_KEYS, RING_VALUES, RING_COUNT = 1, 2, 3


class PureCache(DynamicCache):
    """The cache of a student without any attention layer: the model counts its tokens, for no layer keeps all."""

    is_compileable = False  # generate() would compile the whole model by itself

    def __init__(self, config: GendistillConfig):
        super().__init__(config=config)
        self.tokens = 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.tokens

    def reset(self) -> None:
        super().reset()
        self.tokens = 0


class Ring:
    """Keys and values of the tokens that a window can still see, in a ring buffer of S + W places and one for padding.

    A sequence's token at position p, counted without its padding, lies at place p while p < S, and behind the sinks at
    S + (p - S) mod W. All is updated in place, so that CUDA graphs can capture a step.

    Attributes:
        keys, values: [B, G, S + W + 1, D].
        count: [B] int64, tokens so far.
    """

    def __init__(self, layer: LinearAttentionLayer, like: torch.Tensor, window: int, sinks: int):
        """The ring buffer of a cache's layer, made if it is not there; `like` [B, G, T, D] are keys to come."""
        if not isinstance(layer, LinearAttentionLayer):
            raise ValueError(f"a window keeps its keys in a LinearAttentionLayer, not in a {type(layer).__name__}")
        if layer.record_past:
            raise UserError(
                "a student with windows cannot be a draft model (assistant_model): what a window forgot for drafts "
                "that are rejected could not be brought back. Take a student without windows."
            )
        self.layer, self.window, self.sinks = layer, window, sinks
        if RING_KEYS not in layer.recurrent_states:
            batch, heads, _, width = like.shape
            empty = like.new_zeros(batch, heads, sinks + window + 1, width)
            self._add(RING_KEYS, empty)
            self._add(RING_VALUES, empty)
            self._add(RING_COUNT, torch.zeros(batch, dtype=torch.long, device=like.device))
        if not layer.has_previous_state[RING_KEYS]:  # new, or reset
            layer.equal_count = 0
        self.keys, self.values, self.count = (layer.recurrent_states[i] for i in (RING_KEYS, RING_VALUES, RING_COUNT))

    def _add(self, index: int, empty: torch.Tensor) -> None:
        layer = self.layer
        layer.device = layer.device or empty.device  # beams are reordered there
        layer.number_of_states = max(layer.number_of_states, index + 1)
        layer.conv_states[index], layer.is_conv_states_initialized[index] = None, False
        layer.has_previous_state[index] = False
        layer.lazy_initialization(recurrent_states=empty, state_idx=index)

    @property
    def is_empty(self) -> bool:
        return not self.layer.has_previous_state[RING_KEYS]

    @property
    def lengths(self) -> torch.Tensor:
        """[B]: places from the first on that hold tokens, in whatever order."""
        return ring_length(self.count, self.window, self.sinks)

    def past(self) -> Past | None:
        """The tokens in their order; None if there are none."""
        if self.is_empty:
            return None
        last = self.count[:, None] + torch.arange(-self.window, 0, device=self.count.device)  # [B, W] positions
        sinks = torch.arange(self.sinks, device=last.device).expand(len(last), -1)  # [B, S]
        places = ring_places(last.clamp(min=0), self.window, self.sinks)  # [B, W]
        index = torch.cat([sinks, places], dim=1)[:, None, :, None]  # [B, 1, S + W, 1]
        keys, values = (x.gather(2, index.expand(-1, x.shape[1], -1, x.shape[3])) for x in (self.keys, self.values))
        return Past(keys, values, self.count, self.layer.equal_count)

    def write(self, k: torch.Tensor, v: torch.Tensor, padding: Padding | None) -> None:
        """Takes in the tokens [B, G, T, D] that follow, each sequence's padding behind its tokens."""
        length = k.shape[2]
        lengths = None if padding is None else padding.lengths  # [B]
        if takes_kernels(k) and not torch.compiler.is_compiling():
            write_ring(self.keys, self.values, k, v, self.count, lengths, self.window, self.sinks)
        else:
            self._write(k, v, length if lengths is None else lengths[:, None])
        self.count += length if lengths is None else lengths
        known = padding is None and self.layer.equal_count is not None
        self.layer.equal_count = self.layer.equal_count + length if known else None
        for state in (RING_KEYS, RING_VALUES, RING_COUNT):
            self.layer.has_previous_state[state] = True

    def _write(self, k: torch.Tensor, v: torch.Tensor, new: int | torch.Tensor) -> None:
        """`write_ring` in plain PyTorch; `new` is how many of the tokens are no padding, or [B, 1]."""
        index = torch.arange(k.shape[2], device=k.device).expand(len(k), -1)  # [B, T]
        # Of tokens written here only those that the window still sees at the end: others would share their places.
        stays = (index < new) & ((index >= new - self.window) | (self.count[:, None] + index < self.sinks))
        places = ring_places(self.count[:, None] + index, self.window, self.sinks)  # [B, T]
        places = places.masked_fill(~stays, self.sinks + self.window)
        places = places[:, None, :, None].expand_as(k)
        self.keys.scatter_(2, places, k)
        self.values.scatter_(2, places, v)


def ring_places(positions: torch.Tensor, window: int, sinks: int) -> torch.Tensor:
    """Where in a `Ring` the tokens at these positions lie, int64 of the same shape."""
    return torch.where(positions < sinks, positions, sinks + (positions - sinks) % window)


def ring_length(count: torch.Tensor, window: int, sinks: int) -> torch.Tensor:
    """How many places of a `Ring` hold tokens after so many, int64 of the same shape."""
    return count.clamp(max=sinks + window)


def new_cache(config: GendistillConfig) -> DynamicCache:
    """transformers' cache, which must be told the layers' types; one that counts by itself for pure students."""
    return PureCache(config) if config.is_pure else DynamicCache(config=config)


def select_rows(cache: Cache, rows: Sequence[int]) -> Cache:
    """A cache of the given sequences, any of them any number of times; the one given stays as it is."""
    selected = _of_same_tensors(cache)
    for layer in selected.layers:
        layer.reorder_cache(torch.tensor(rows, device=layer.device))  # by index_select, so with new tensors
    return selected


def beside(cache: "SlotCache", rows: Sequence[int]) -> "SlotCache":
    """As `select_rows`, for tokens that come behind the sequences' last and count for nobody else.

    Of neighbouring sequences, each once, keys and values are not copied: the tokens are written behind the sequences',
    where nothing is looked at. States are copied in any case, for they change as a whole.
    """
    first = rows[0]
    if list(rows) != list(range(first, first + len(rows))):
        return select_rows(cache, rows)
    selected = _of_same_tensors(cache)
    for layer in selected.layers:
        if isinstance(layer, SlotLayer):
            layer.keys, layer.values = (x[first : first + len(rows)] for x in (layer.keys, layer.values))
        else:
            layer.reorder_cache(torch.tensor(rows, device=layer.device))
    return selected


def _of_same_tensors(cache: Cache) -> Cache:
    """A cache with layers of its own, in which other tensors can be put."""
    made = copy.copy(cache)
    made.layers = [copy.copy(layer) for layer in cache.layers]
    for layer in made.layers:
        # A linear layer keeps its states in dictionaries, which a copy of the layer still shares.
        containers = {name: copy.copy(value) for name, value in vars(layer).items() if isinstance(value, dict | list)}
        vars(layer).update(containers)
    return made


class SlotLayer(CacheLayerMixin):
    """Keys and values [B, G, S, D] of a fixed size, at an address that stays: a token at position p lies at place p.

    So sequences of unequal length need no padding between their tokens: what lies behind a sequence's last token is not
    looked at, and is written over by the next.
    """

    is_sliding = False

    def __init__(self, room: int):
        """A layer of `room` places, S."""
        super().__init__()
        self.room = room

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        batch, heads, _, width = key_states.shape
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys = key_states.new_zeros(batch, heads, self.room, width)
        self.values = torch.zeros_like(self.keys)
        self.is_initialized = True

    def update(self, key_states, value_states, start: int | torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Puts T tokens [B, G, T, D] at the places from `start` on: one for all sequences, or each one's own [B].

        Returns:
            keys and values up to the last of them; of all places, if sequences have starts of their own.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        length = key_states.shape[2]
        if isinstance(start, int):
            end = start + length
            self.keys[:, :, start:end] = key_states
            self.values[:, :, start:end] = value_states
            return self.keys[:, :, :end], self.values[:, :, :end]
        places = start[:, None] + torch.arange(length, device=start.device)  # [B, T]
        places = places[:, None, :, None].expand_as(key_states)
        self.keys.scatter_(2, places, key_states)
        self.values.scatter_(2, places, value_states)
        return self.keys, self.values

    def copy_tensors(self, room: int) -> None:
        """Takes tensors of its own, with another number of places."""
        kept = min(room, self.room)
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = old.new_empty(*old.shape[:2], room, old.shape[3])
            new[:, :, :kept] = old[:, :, :kept]
            setattr(self, name, new)
        self.room = room

    def resize(self, room: int) -> None:
        """Makes room for more tokens, or for fewer."""
        if self.is_initialized and room != self.room:
            self.keys, self.values = (F.pad(x, (0, 0, 0, room - self.room)) for x in (self.keys, self.values))
        self.room = room

    def reset(self) -> None:
        """Nothing: what is in a place counts only behind a token that has been put there."""

    def get_seq_length(self) -> int:
        return self.room if self.is_initialized else 0

    def get_max_length(self) -> int:
        return self.room

    def get_max_cache_shape(self) -> int:
        return self.room

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.room, 0


class SlotCache(Cache):
    """The cache of the decoding loop: layers with attention have places for a fixed number of tokens.

    Attributes:
        start: position of the next tokens: one for all sequences, or [B].
    """

    def __init__(self, config: GendistillConfig, room: int):
        """A cache in which layers with full attention have `room` places."""
        attention = {i: SlotLayer(room) for i in config.layers_of_type("full_attention")}
        layers = [attention.get(i) or LinearAttentionLayer() for i in range(config.num_hidden_layers)]
        super().__init__(layers=layers)
        self.start: int | torch.Tensor = 0

    def update(self, key_states, value_states, layer_idx: int, *args, **kwargs) -> tuple[torch.Tensor, torch.Tensor]:
        return self.layers[layer_idx].update(key_states, value_states, self.start)

    @property
    def room(self) -> int:
        """Places of the layers with full attention; 0 if there are none."""
        return max((layer.room for layer in self.layers if isinstance(layer, SlotLayer)), default=0)

    def reset(self) -> None:
        """Forgets the tokens. What states hold is not looked at any more, so nothing but counts is set."""
        for layer in self.layers:
            if isinstance(layer, SlotLayer):
                continue
            layer.has_previous_state = dict.fromkeys(layer.has_previous_state, False)
            if RING_COUNT in layer.recurrent_states:
                layer.recurrent_states[RING_COUNT].zero_()

    def resize(self, room: int) -> None:
        """Gives the layers with full attention this many places."""
        for layer in self.layers:
            if isinstance(layer, SlotLayer):
                layer.resize(room)

    def copy(self, room: int) -> "SlotCache":
        """The same in tensors of its own, with another number of places."""
        made = _of_same_tensors(self)
        for layer in made.layers:
            if isinstance(layer, SlotLayer):
                layer.copy_tensors(room)
                continue
            for kind in ("conv_states", "recurrent_states"):
                states = getattr(layer, kind).items()
                setattr(layer, kind, {i: None if state is None else state.clone() for i, state in states})
        return made

    def put(self, rows: torch.Tensor, other: "SlotCache") -> None:
        """Puts the N sequences of another cache in the place of some of this one's, `rows` [N]."""
        for own, new in zip(self.layers, other.layers, strict=True):
            if isinstance(own, SlotLayer):
                for mine, theirs in ((own.keys, new.keys), (own.values, new.values)):
                    mine[rows, :, : new.room] = theirs
                continue
            for kind in ("conv_states", "recurrent_states"):
                for state, mine in getattr(own, kind).items():
                    if mine is not None:
                        mine[rows] = getattr(new, kind)[state]
            own.equal_count = None


def cache_bytes(cache: Cache) -> int:
    """Bytes of the tensors that a cache keeps of its tokens."""
    tensors = []
    for layer in cache.layers:
        if isinstance(layer, LinearAttentionLayer):
            tensors += [*layer.conv_states.values(), *layer.recurrent_states.values()]
        # Not instead of the above: transformers' own hybrids have layers that are both.
        if isinstance(layer, DynamicLayer | StaticLayer | SlotLayer):
            tensors += [layer.keys, layer.values]
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)
