"""gendistill ablate, as far as it says what it would do; tests/ablation runs it."""

import pytest

from ablation_tools import ABLATION, write_ablation_file


def test_a_dry_run_prints_variants_what_they_share_and_the_price(gendistill, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = write_ablation_file(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    code, output = gendistill("ablate", file, "held_out=0.1", "--dry-run")
    assert code == 0, output
    lines = output.splitlines()
    # Each trains on 4 steps of 2 sequences of 64 tokens in a stage; the alignment is the base's own.
    assert any(line.startswith("  base-seed0: the base; 1,024 tokens, ") for line in lines)
    name = "objective-reverse_kl-seed0"
    assert any(line.startswith(f'  {name}: stages.logit_distillation.objective="reverse_kl"; 512 ') for line in lines)
    assert f"  block_alignment: run once in base-seed0, for base-seed0, {name}, rate-huge-seed0" in lines
    assert "3 stages are run once for several variants, which spares 7 runs of them: 2,048 tokens are" in output
    assert any(line.startswith("training in all: ") for line in lines)
    assert sorted(tmp_path.rglob("*")) == before


def test_what_does_not_fit_leaves_nothing_behind(gendistill, tmp_path):
    axes = ABLATION["axes"] | {"mixer": {"student.mixer": ["kdaa", "glaa"]}}
    code, output = gendistill("ablate", write_ablation_file(tmp_path, axes=axes), "--output", tmp_path / "out")
    assert code == 2 and "2 value(s) do not fit" in output
    assert "axes.mixer.kdaa: " in output and "axes.mixer.glaa: " in output and "Traceback" not in output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--cluster-setting", "timeout_min=5"], "--cluster-setting is for --cluster"),
        (["--cluster", "local", "--cluster-setting", "timeout_min"], "write it as key=value"),
    ],
)
def test_settings_of_a_cluster(gendistill, tmp_path, given, message):
    code, output = gendistill("ablate", write_ablation_file(tmp_path), *given)
    assert code == 2 and message in output, output
