"""What benchmarks/share_noise.py finds along replies."""

import pytest
import torch
from share_noise import noise, recurrences, silenced

from small_models import WINDOW, make_student, make_teacher, tokens


@pytest.fixture(scope="module")
def rows():
    ids = tokens(3, 40).tolist()
    return [(ids[0][:20], ids[0][20:]), (ids[1][:12], ids[1][12:30]), (ids[2][:30], ids[2][30:35])]


@pytest.mark.parametrize("share", ["head", "token"])
def test_noise_is_that_of_the_recurrences_and_leaves_the_student_as_it_was(rows, share):
    teacher = make_teacher("qwen2")
    student = make_student("qwen2", keep=(1,), mixer="kda", window_share=share, **WINDOW)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    found = noise(teacher, student, rows)
    assert found["tokens"] == 20 + 18 + 5
    assert set(found["kl"]) == {
        "as is",
        "windows alone",
        *(f"{how} {i}" for how in ("silent", "alone") for i in (0, 2, 3)),
    }
    assert all(kl > 0 for kl in found["kl"].values()) and len(set(found["kl"].values())) == len(found["kl"])
    assert all(0 < each < 1 for each in found["share"].values())
    torch.testing.assert_close(student.state_dict(), before)

    # One at a time they are the same rows; and a recurrence without a share is a window alone.
    apart = [noise(teacher, student, [row]) for row in rows]
    whole = sum(each["kl"]["as is"] * each["tokens"] for each in apart) / found["tokens"]
    assert whole == pytest.approx(found["kl"]["as is"], rel=1e-4)
    window = make_student("qwen2", keep=(1,), mixer="window", **WINDOW)
    with torch.no_grad():
        for name, value in window.state_dict().items():
            value.copy_(student.state_dict()[name])
    alone = noise(teacher, student, rows)["kl"]["windows alone"]
    assert noise(teacher, window, rows)["kl"]["as is"] == pytest.approx(alone, rel=1e-4)


def test_a_silent_recurrence_says_nothing():
    student = make_student("qwen2", keep=(1,), mixer="kda", **WINDOW)
    layers, ids = recurrences(student), tokens(1, 24)
    with torch.inference_mode(), silenced(layers, layers):
        silent = student(ids).logits
        for mixer in layers.values():
            mixer.v_conv1d.weight.data.mul_(5)
        torch.testing.assert_close(student(ids).logits, silent)
