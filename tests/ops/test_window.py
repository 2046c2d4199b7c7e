"""Attention over a window against a plain [T, T] mask: blocks, packed documents, tokens of earlier calls, gradients."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers.cache_utils import LinearAttentionLayer

from gendistill.models.cache import Ring
from gendistill.models.padding import Padding
from gendistill.ops import Documents
from gendistill.ops.window import window_attention

B, H, G, D = 2, 4, 2, 8
SCALE = 0.3
CLOSE = dict(rtol=0, atol=1e-10)
# length, window, sinks: several blocks, whole and cut; shorter than the window, than the sinks; the least there is.
CASES = [(37, 8, 4), (40, 8, 0), (5, 8, 4), (3, 8, 4), (64, 16, 16), (33, 1, 1), (9, 1, 0), (1, 4, 2)]


def random_qkv(length: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(B, heads, length, D, dtype=torch.float64, generator=source) for heads in (H, G, G))


def plain(q, k, v, document, window: int, sinks: int) -> torch.Tensor:
    """[B, T, H, D] by a mask [B, T, T]; document [B, T] numbers each token's document, below 0 for padding."""
    length = q.shape[2]
    index = torch.arange(length)
    age = index[:, None] - index
    start = torch.stack([(document == number).int().argmax(1) for number in range(length)], 1)  # [B, documents]
    place = index - start.gather(1, document.clamp(min=0))  # [B, T], in its document
    seen = (document[:, :, None] == document[:, None]) & (age >= 0) & ((age < window) | (place < sinks)[:, None])
    k, v = (x.repeat_interleave(H // G, 1) for x in (k, v))
    scores = (q @ k.transpose(-1, -2) * SCALE).masked_fill(~seen[:, None], -torch.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2)


@pytest.mark.parametrize(("length", "window", "sinks"), CASES)
def test_blocks_are_the_plain_mask_and_so_are_their_gradients(length, window, sinks):
    inputs = [x.requires_grad_() for x in random_qkv(length)]
    document = torch.zeros(B, length, dtype=torch.long)
    got = window_attention(*inputs, window=window, sinks=sinks, scale=SCALE)
    expected = plain(*inputs, document, window, sinks)
    torch.testing.assert_close(got, expected, **CLOSE)
    weights = torch.randn_like(got)
    gradients = [torch.autograd.grad((x * weights).sum(), inputs) for x in (got, expected)]
    torch.testing.assert_close(*gradients, **CLOSE)


@pytest.mark.parametrize(("length", "window", "sinks"), CASES[:6])
@pytest.mark.parametrize("seed", range(5))
def test_packed_documents_have_windows_and_sinks_of_their_own(length, window, sinks, seed):
    source = torch.Generator().manual_seed(seed)
    # Documents of one token, of fewer than the sinks, and long ones.
    starts = torch.rand(B, length, generator=source) < torch.rand(B, 1, generator=source)
    starts[:, 0] = True
    index = torch.arange(length)
    positions = index - torch.where(starts, index, 0).cummax(1).values
    documents = Documents.from_position_ids(positions)
    if documents is None:
        pytest.skip("one document")
    q, k, v = random_qkv(length, seed)
    got = window_attention(q, k, v, window=window, sinks=sinks, scale=SCALE, documents=documents)
    torch.testing.assert_close(got, plain(q, k, v, starts.cumsum(1) - 1, window, sinks), **CLOSE)


@pytest.mark.parametrize(("window", "sinks"), [(8, 4), (8, 0), (3, 3), (1, 1)])
@pytest.mark.parametrize("pieces", [[20, 13, 7], [2, 1, 1, 9, 27], [40]])
def test_pieces_with_padding_anywhere_are_one_pass(window, sinks, pieces):
    """Each row has another number of tokens in each piece, before or behind its padding."""
    source = torch.Generator().manual_seed(0)
    q, k, v = random_qkv(sum(pieces))
    expected = plain(q, k, v, torch.zeros(B, sum(pieces), dtype=torch.long), window, sinks)
    layer = LinearAttentionLayer()
    done = [0] * B
    for width in pieces:
        counts = [int(torch.randint(0, width + 1, (1,), generator=source)) for _ in range(B)]
        left = torch.rand(B, generator=source) < 0.5
        valid, index = torch.zeros(B, width, dtype=torch.bool), torch.zeros(B, width, dtype=torch.long)
        for row, count in enumerate(counts):
            columns = slice(width - count, width) if left[row] else slice(0, count)
            valid[row, columns] = True
            index[row, columns] = torch.arange(done[row], done[row] + count)
        parts = [x.gather(2, index[:, None, :, None].expand(-1, x.shape[1], -1, D)) for x in (q, k, v)]
        padding = Padding.from_mask(valid)
        ring = Ring(layer, parts[1], window, sinks)
        parts = [x if padding is None else padding.to_the_end(x) for x in parts]
        got = window_attention(*parts, window=window, sinks=sinks, scale=SCALE, past=ring.past())
        ring.write(*parts[1:], padding)
        got = got if padding is None else padding.put_back(got)
        for row, count in enumerate(counts):
            torch.testing.assert_close(got[row, valid[row]], expected[row, done[row] : done[row] + count], **CLOSE)
            done[row] += count


def test_a_ring_buffer_holds_the_window_and_nothing_else():
    """After any number of tokens: the sinks in order, then the last tokens; the order of places is told by position."""
    window, sinks, layer = 5, 2, LinearAttentionLayer()
    tokens = torch.arange(23.0).view(1, 1, 23, 1).expand(1, G, -1, D)
    ring = Ring(layer, tokens, window, sinks)
    for count in range(1, 24):
        one = tokens[:, :, count - 1 : count]
        ring.write(one, -one, None)
        kept = ring.keys[0, 0, : int(ring.lengths), 0].tolist()
        wanted = {*range(min(sinks, count)), *range(max(0, count - window), count)}
        assert wanted <= set(kept) and len(kept) == min(count, window + sinks)
        last = ring.past().keys[0, 0, sinks:, 0].tolist()
        assert last[-min(count, window) :] == list(range(max(0, count - window), count))
        assert layer.equal_count == count


def test_nothing_is_read_on_the_host():
    """Tensors without data: whatever depends on their content raises. So a stage's CUDA graph can capture a window."""
    with FakeTensorMode():
        q, k, v = (torch.empty(B, heads, 40, D, requires_grad=True) for heads in (H, G, G))
        starts, positions = torch.empty(B, 40, dtype=torch.bool), torch.empty(B, 40, dtype=torch.long)
        with pytest.raises(Exception, match="_local_scalar_dense"):
            starts.any().item()
        documents = Documents(starts, positions, torch.empty(5, dtype=torch.long), fixed_shape=True)
        for given in (documents, None):
            window_attention(q, k, v, window=8, sinks=4, scale=SCALE, documents=given).sum().backward()
        ring = Ring(LinearAttentionLayer(), k, 8, 4)
        for _ in range(2):
            ring.write(k.detach(), v.detach(), Padding(torch.empty(B, 40, dtype=torch.bool)))
            window_attention(q, k, v, window=8, sinks=4, scale=SCALE, past=ring.past())
