"""Bad input gets one clear error: what was given, what is allowed, what to do; no traceback, and nothing is lost."""

import json
import resource
import shutil
import signal
import subprocess

import pytest
import yaml
from safetensors.torch import load_file, save_file

from cli_tools import command, environment
from gendistill.embedded import teacher_folder
from gendistill.models.conversion import ConversionReport


def check(result, *needles, status=2):
    code, output = result
    assert code == status, output
    assert "Traceback" not in output, output
    assert output.count("gendistill: ") == 1, output
    for needle in needles:
        assert needle in " ".join(output.split()), output


@pytest.mark.parametrize(
    ("override", "needles"),
    [
        ("stages.qk_alignment.lerning_rate=1", ["lerning_rate", "did you mean 'learning_rate'"]),
        ("studnt.mixer=kda", ["studnt", "did you mean 'student'"]),
        ("student.keep_attention=[2, 8]", ["layer(s) [8]", "has 8, counted 0 to 7"]),
        ("stages.block_alignment.sequence_length=4096", ["stages.block_alignment.sequence_length is 4096", "1024"]),
        ("data.text=[{path: nowhere.jsonl}]", ["nowhere.jsonl: no such file"]),
        ("teacher=./nowhere", ["/nowhere': no such folder"]),
        ("stages.qk_alignment.train=[mixers]", ["stages.qk_alignment.train.0", "'mixer'", "mixers"]),
        ("stages.qk_alignment.train=[mlp]", ["trains mixers only", "mlp"]),
        ("stages.qk_alignment.train=[]", ["train names no role", "name some of mixer"]),
        ("stages.qk_alignment.learning_rate={mixer_qk: 1}", ["learning_rate says nothing of mixer_conv, mixer_gate"]),
        ("stages.qk_alignment.objective={mixer_l2: 1, forward_kl: 1}", ["mixer_l2, forward_kl", "stages of their own"]),
        # The embedded teacher's head is its embedding.
        (
            "stages.logit_distillation.train=[mixer, head]",
            ["stages.logit_distillation: train: head: this student has no such parameters; it has"],
        ),
        ("stages.qk_alignment.temperature=2", ["temperature changes forward_kl, reverse_kl, jensen_shannon only"]),
        ("stages.qk_alignment.data=txt", ["asks for data 'txt'", "text, instructions"]),
        ("stages.logit_distillation.loss_on=completion", ["completion needs conversations"]),
        ("nonsense", ["dotted.key=value"]),
    ],
)
def test_recipe_mistakes(recipe, gendistill, tmp_path, override, needles):
    check(gendistill("run", recipe, override, "--output", tmp_path / "run"), *needles)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("verb", ["convert", "distill", "run"])
@pytest.mark.parametrize(
    ("override", "needles"),
    [
        ("evaluation.tasks.arithmetic.path=nowhere.jsonl", ["nowhere.jsonl: no such file"]),
        ("evaluation.tasks.arithmetic.items=1000000", ["task 'arithmetic' asks for 1000000 items"]),
        (
            "evaluation.tasks.arithmetic.max_new_tokens=5000",
            ["task 'arithmetic' needs", "the model has 1024 positions"],
        ),
    ],
)
def test_mistakes_in_the_last_task_show_before_anything_is_computed(
    recipe, gendistill, tmp_path, verb, override, needles
):
    """Whatever is to be done first: an evaluation that cannot be would cost the whole run."""
    check(gendistill(verb, recipe, override, "--output", tmp_path / "run"), *needles)
    assert not (tmp_path / "run").exists()


def test_a_run_that_would_fill_the_disk_is_not_begun(recipe, gendistill, tmp_path, monkeypatch):
    free = shutil.disk_usage(tmp_path)._replace(free=2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    check(
        gendistill("run", recipe, "--output", tmp_path / "a/run"), "GiB of disk, 0.000 are written and 0.001 are free"
    )
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("room", [0, 100, 1000, 3000])
def test_a_full_disk_in_an_evaluation_is_one_clear_error(recipe, gendistill, converted_run, room):
    """The kernel refuses a write in its middle, as it does when the disk is full; wherever that is."""
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        code, output = gendistill("evaluate", recipe, "--output", converted_run)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert code == 2 and "Traceback" not in output and "File too large" in output, output
    assert not list(converted_run.rglob("*.partial"))
    assert gendistill("evaluate", recipe, "--output", converted_run)[0] == 0


def test_a_conversion_that_is_refused_leaves_nothing_half(recipe, gendistill, tmp_path, monkeypatch):
    monkeypatch.setattr(ConversionReport, "problem", lambda report, max_loss: "it is worse than a guess")
    said = ["(centred, teacher, standard). The best is conversion.initialisation: ", "it is worse than a guess"]
    check(gendistill("convert", recipe, "--output", tmp_path / "run"), *said)
    assert not (tmp_path / "run/0-conversion").exists()


def test_a_teacher_that_computes_no_numbers_is_called_that(recipe, gendistill, tmp_path):
    folder = shutil.copytree(teacher_folder(), tmp_path / "teacher")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.4.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    call = ("convert", recipe, f"teacher={folder}", "--output", tmp_path / "run")
    check(gendistill(*call), f"teacher {folder}: layer 4 holds NaN or infinity", "Its weights may be damaged")
    assert not (tmp_path / "run/0-conversion").exists()


def test_missing_recipe_in_a_process_of_its_own():
    """The one error that is looked at as the shell sees it: exit code and both streams."""
    done = subprocess.run(
        command("run", "nowhere.yaml"), capture_output=True, text=True, env=environment(), timeout=300, check=False
    )
    assert done.stdout == ""
    check((done.returncode, done.stderr), "nowhere.yaml: no such recipe")


def test_unsupported_family(recipe, gendistill, tmp_path):
    from transformers import GPT2Config

    GPT2Config(n_layer=2).save_pretrained(tmp_path / "gpt2")
    check(
        gendistill("convert", recipe, f"teacher={tmp_path / 'gpt2'}", "--output", tmp_path / "run"),
        "'gpt2'",
        "qwen3, qwen2, llama",
    )


@pytest.mark.parametrize(
    ("content", "needles"),
    [
        ("", ["no records"]),
        ('{"text": "a"}\n{"text": \n', ["text.jsonl:2"]),
        ('{"txt": "a"}\n', ["text.jsonl:1", "'text'", "txt"]),
    ],
)
def test_bad_data_files(recipe, gendistill, tmp_path, content, needles):
    path = tmp_path / "text.jsonl"
    path.write_text(content)
    override = f"data.text=[{{path: {path}}}]"
    check(gendistill("convert", recipe, override, "--output", tmp_path / "run"), *needles)


def test_empty_completion_mask(recipe, gendistill, tmp_path):
    """Replies that lie beyond the sequence length leave nothing to learn."""
    record = {"messages": [{"role": "user", "content": "word " * 300}, {"role": "assistant", "content": "yes"}]}
    (tmp_path / "chat.jsonl").write_text((json.dumps(record) + "\n") * 50)
    run = tmp_path / "run"
    overrides = [f"data.instructions=[{{path: {tmp_path / 'chat.jsonl'}, messages: messages}}]"]
    settings = yaml.safe_load(recipe.read_text())
    settings["stages"] = {"instruction_distillation": settings["stages"]["instruction_distillation"]}
    recipe.write_text(yaml.safe_dump(settings))
    assert gendistill("convert", recipe, *overrides, "--output", run)[0] == 0
    check(gendistill("distill", recipe, *overrides, "--output", run), "50")
    assert (run / "0-conversion/student/model.safetensors").exists()


def test_output_of_another_recipe(recipe, gendistill, tmp_path, converted_run):
    run = converted_run
    before = (run / "recipe.yaml").read_text()
    check(
        gendistill("convert", recipe, "seed=1", "stages.qk_alignment.tokens=999", "--output", run),
        "another recipe; different: seed. What has begun there cannot change",
    )
    assert (run / "recipe.yaml").read_text() == before
    # What changes memory or speed only may change.
    assert gendistill("convert", recipe, "stages.qk_alignment.micro_batch=1", "--output", run)[0] == 0
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").touch()
    check(gendistill("convert", recipe, "--output", tmp_path / "other"), "holds no run")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "conversion_report.json"])
def test_a_changed_student_is_refused(recipe, gendistill, converted_run, name):
    """Before the next stage starts from it, and before it is evaluated."""
    run = converted_run
    path = run / "0-conversion/student" / name
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    needle = f"0-conversion/student: {name} changed since written. Delete that folder and run again"
    check(gendistill("distill", recipe, "--output", run), needle)
    check(gendistill("evaluate", recipe, "--output", run), needle)


def test_missing_learning_rate(recipe, gendistill, tmp_path):
    settings = yaml.safe_load(recipe.read_text())
    del settings["stages"]["qk_alignment"]["learning_rate"]
    recipe.write_text(yaml.safe_dump(settings))
    check(gendistill("run", recipe, "--output", tmp_path / "run"), "stages.qk_alignment.learning_rate: missing")


@pytest.mark.parametrize(
    ("override", "needles"),
    [
        (
            "stages.qk_alignment.expected_loss=[0, 0.001]",
            ["step 1: the loss is", "expected_loss of this stage is 0 to"],
        ),
    ],
)
def test_stages_that_cannot_resume(recipe, gendistill, tmp_path, override, needles):
    run = tmp_path / "run"
    settings = ["stages.qk_alignment.objective=forward_kl", override, "--output", run]
    assert gendistill("convert", recipe, *settings)[0] == 0
    # 3: by it a program knows that the training diverged, and that nothing else was wrong.
    check(gendistill("distill", recipe, *settings, "--stage", "qk_alignment"), *needles, status=3)
    assert (run / "0-conversion/student/model.safetensors").exists()
    assert not (run / "1-qk_alignment/student").exists()


def test_stage_out_of_order(recipe, gendistill, tmp_path):
    check(
        gendistill("distill", recipe, "--stage", "block_alignment", "--output", tmp_path / "run"),
        "starts from the student of 'qk_alignment'",
    )
    check(gendistill("distill", recipe, "--stage", "nonsense", "--output", tmp_path / "run"), "the recipe's stages are")
