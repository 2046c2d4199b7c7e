"""How processes find each other, and what is said when they do not."""

from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from gendistill import distributed
from gendistill.errors import UserError


@pytest.fixture
def launched(monkeypatch):
    """As one of two processes that torchrun started; nothing listens at its address."""
    started = dict(TORCHELASTIC_RUN_ID="x", TORCHELASTIC_RESTART_COUNT="0", RANK="1", WORLD_SIZE="2", LOCAL_RANK="1")
    started |= dict(LOCAL_WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT="9", TORCHELASTIC_USE_AGENT_STORE="True")
    for name, value in started.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(distributed, "MEETING", timedelta(seconds=1))


def test_who_did_not_come_is_named(monkeypatch):
    """One that died at its start would otherwise be waited for through PATIENCE."""
    monkeypatch.setattr(distributed, "MEETING", timedelta(seconds=0.2))
    store = dist.HashStore()
    distributed._meet(store, 0, 1)
    with pytest.raises(UserError, match=r"of 4 processes, 1, 3 did not come within 0:00:00.2.*output of its host"):
        store.set("here 2", "")
        distributed._meet(store, 0, 4)


def test_an_address_where_nobody_answers(launched):
    with pytest.raises(UserError, match=r"process 1 cannot reach the others at 127.0.0.1:9 .*port open"):
        distributed.start("cpu")


def test_more_processes_than_gpus(launched, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match=r"started 2 processes on this host, which has 1 GPU\(s\); start it"):
        distributed.start("cuda")


def test_a_torch_without_nccl(launched, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(dist, "is_nccl_available", lambda: False)
    with pytest.raises(UserError, match="has no NCCL.*install a build of torch for CUDA"):
        distributed.start("cuda")


def test_shares_are_all_there_is():
    things = list(range(7))
    shares = [distributed.Share(number, 3).of(things) for number in range(3)]
    assert sorted(sum(shares, [])) == things and max(map(len, shares)) - min(map(len, shares)) <= 1
    assert distributed.WHOLE.of(things) == things
