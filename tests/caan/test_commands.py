"""The command line: help, errors, and a run from training to the table."""

import csv
import importlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from ablation import TABLE_4
from command_lines import SMALL

from caan import ModelConfig, checkpoint, commands
from caan.__main__ import main as caan_program
from caan.commands import main
from caan.commands.helping import EXAMPLES as EXAMPLES_OF
from caan.presets import PRESETS, TrainingConfig
from caan.settings import helps

NAMES = list(commands._COMMANDS)


def test_help_lists_the_commands(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in NAMES) and "\n  caan demo\n" in printed and "register-python-argcomplete" in printed


@pytest.mark.parametrize("name", ["pair", "training", "retrieval"])
def test_each_picture_is_described(capsys, name):
    with pytest.raises(SystemExit):
        main(["show", name, "--help"])
    assert "\n\nDraw " in capsys.readouterr().out


@pytest.mark.parametrize("name", NAMES)
def test_help_of_a_command(capsys, name):
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    printed = capsys.readouterr().out
    assert end.value.code == 0 and printed.startswith(f"usage: caan {name}") and "None" not in printed


def test_any_thread_may_run_a_command(data, tmp_path):
    """Only the main thread may say what becomes of signals."""
    given = ["evaluate", str(tmp_path / "nothing"), "--data", str(data)]
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(main, given).result() == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: command"),
        (["trian"], "invalid choice: 'trian'"),
        (["train", "--data", "x"], "required: --out"),
        (["train", "--data", "x", "--out", "y", "--width", "wide"], "argument --width: invalid int value: 'wide'"),
        (
            ["train", "--data", "x", "--out", "y", "--decay-epochs", "1,two"],
            "argument --decay-epochs: invalid numbers value: '1,two'",
        ),
        (["train", "--data", "x", "--out", "y", "--preset", "tiny"], "argument --preset: invalid choice: 'tiny'"),
        (["train", "--data", "x", "--out", "y", "--epoch", "3"], "unrecognized arguments: --epoch; did you mean --epochs?"),
        (["train", "--batchsize=3"], "caan train: error: unrecognized arguments: --batchsize; did you mean --batch-size?"),
        (["evaluate", "x", "--dta", "y"], "caan evaluate: error: unrecognized arguments: --dta; did you mean --data?"),
        (["show", "pair", "--imge", "0"], "caan show pair: error: unrecognized arguments: --imge; did you mean --image?"),
        (["search", "x", "dog", "--qwxz"], "caan search: error: unrecognized arguments: --qwxz\n"),
        (["train", "x", "--data", "x", "--out", "y"], "caan train: error: unrecognized arguments: x\n"),
        (["evaluate"], "required: RUN, --data"),
        (["evaluate", "x", "--data", "y", "--workers", "-1"], "argument --workers: expected at least 0, got -1"),
    ],
)
def test_a_command_line_that_is_not_understood(capsys, arguments, message):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    printed = capsys.readouterr().err
    # Of the command, up to its first option or positional argument.
    usage = re.match(r"usage: (caan[a-z ]*) ", printed)[1]
    assert end.value.code == 2 and message in printed and f"\n{usage}: error: " in printed


PRINT = """
import sys
from caan import commands
commands.import_module = lambda *names: type("Module", (), {"__doc__": "x", "add_arguments": lambda p: None, "run": run})
def run(arguments):
    for _ in range(10000):
        print("image → text \\udcff")
sys.exit(commands.main(["search"]))
"""


@pytest.mark.parametrize("what", ["import_module", "argparse.ArgumentParser"])
def test_an_interrupt_while_the_command_is_imported(capsys, monkeypatch, what):
    def stop(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"caan.commands.{what}", stop)
    monkeypatch.setattr(sys, "argv", ["caan", "train"])
    assert caan_program() == 130 and capsys.readouterr() == ("", "caan: stopped\n")


def test_a_table_outlives_an_encoding_and_a_reader():
    command = [sys.executable, "-c", PRINT]
    latin = subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "latin-1"})
    assert (latin.returncode, latin.stderr) == (0, b"") and latin.stdout.startswith(b"image ? text ?\n")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b"" and process.wait() == 1


EXAMPLES = [(name, line) for name, lines in EXAMPLES_OF.items() if name for line in lines]


@pytest.mark.parametrize(("name", "line"), EXAMPLES, ids=[line for _, line in EXAMPLES])
def test_examples_are_understood_and_shown(capsys, monkeypatch, name, line):
    words = shlex.split(line)
    assert words[: 1 + len(name.split())] == ["caan", *name.split()]
    with pytest.raises(SystemExit):
        main([*name.split(), "--help"])
    assert f"\n  {line}\n" in capsys.readouterr().out
    module = importlib.import_module(f"caan.commands.{words[1]}")
    monkeypatch.setattr(module, "run", lambda arguments: print("understood"))
    assert main(words[1:]) == 0 and capsys.readouterr().out == "understood\n"


def test_presets_are_listed_with_their_values(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    lines = capsys.readouterr().out.split("presets:\n")[1].splitlines()
    heads, *rows = (re.split(r"\s{2,}", line.strip()) for line in lines)
    assert heads == ["--preset", "f30k (default)", "coco", "cpu", "demo"]
    found = {row[0]: row[1:] for row in rows}
    assert found["--width"] == ["1024", "1024", "448", "128"] and found["--learning-rate"] == [
        "0.0002",
        "0.0005",
        "0.0008",
        "0.001",
    ]
    assert found["--decay-epochs"] == ["15", "10", "4,6,7.333", "3"] and found["--standardize"] == ["no", "no", "yes", "yes"]
    assert found["--precision"] == ["fp32"] * 4
    assert len(found) == len(rows) == len(helps(TrainingConfig) | helps(ModelConfig))


def test_short_spellings(data, tmp_path, capsys):
    run = tmp_path / "run"
    train = ["train", "--data", str(data), "--out", str(run), *SMALL, "--lr", "3e-4", "--precision"]
    assert main([*train, "bf16"]) == main([*train, "bfloat16"]) == 0
    training = checkpoint.read(run / "last.safetensors").facts["training"]
    assert (training["learning_rate"], training["precision"], training["preset"]) == (3e-4, "bfloat16", "cpu")
    assert main([*train, "float16"]) == 1
    assert "was started with --precision bf16: expected the same, got --precision fp16; " in capsys.readouterr().err


# What a shell does when the tab key is hit, for several lines in one process, which argcomplete would end after one.
COMPLETE = """
import argcomplete, functools, os, sys
from caan.commands import main
argcomplete.autocomplete = functools.partial(argcomplete.autocomplete, exit_method=sys.exit)
for number, line in enumerate(sys.argv[2:]):
    os.environ |= {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line))}
    os.environ["_ARGCOMPLETE_STDOUT_FILENAME"] = f"{sys.argv[1]}/{number}"
    try:
        main([])
    except SystemExit:
        pass
"""


def test_a_shell_completes(tmp_path):
    pytest.importorskip("argcomplete")
    lines = {"caan tra": "train", "caan train --batch": "--batch-size", "caan train --preset f": "f30k"}
    subprocess.run([sys.executable, "-c", COMPLETE, str(tmp_path), *lines], check=True)
    assert [(tmp_path / str(number)).read_text().strip() for number in range(3)] == list(lines.values())


def test_every_setting_is_an_option(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    printed = capsys.readouterr().out
    for name in helps(TrainingConfig) | helps(ModelConfig):
        assert f"--{name.replace('_', '-')}" in printed
    assert "--no-inter" in printed and "--intra NAME" in printed and "--no-unit-length" in printed
    assert all(preset in printed for preset in PRESETS)


def test_train_and_evaluate(data, tmp_path, capsys):
    train = ["train", "--data", str(data), "--out", str(tmp_path / "run"), *SMALL]
    assert main(train) == 0
    printed = capsys.readouterr().out
    assert "7 images, 35 captions" in printed and "6 steps on cpu" in printed
    # Without the four marks.
    words = len(json.loads((tmp_path / "run" / "vocabulary.json").read_text())["word2idx"]) - 4
    assert f", {words} words; " in printed
    assert "epoch 2 of 2" in printed and "best validation rsum" in printed
    assert main(train) == 0
    assert "continuing" in capsys.readouterr().out
    assert main(["evaluate", str(tmp_path / "run"), "--data", str(data)]) == 0
    printed = capsys.readouterr().out
    assert "7 images, 35 captions" in printed and "245 pairs" in printed
    assert main([*train, "--margin", "0.3", "--no-inter", "--decay-epochs", "1,1.5"]) == 1
    started = f"the run in {tmp_path / 'run'} was started with --decay-epochs 1 --margin 0.2 --inter: expected the same, "
    assert f"{started}got --decay-epochs 1,1.5 --margin 0.3 --no-inter; another --out starts anew" in capsys.readouterr().err
    assert main([*train, "--preset", "f30k"]) == 1
    started = f"the run in {tmp_path / 'run'} was started with --preset cpu: expected the same, got --preset f30k"
    assert started in capsys.readouterr().err
    # What the data decide is nothing that a run is started with.
    (data / "train_caps.txt").write_text((data / "train_caps.txt").read_text().replace("well", "another"))
    assert main(train) == 1
    assert capsys.readouterr().err.startswith("caan train: error: --vocabulary: expected the words of the run in ")
    (data / "train_caps.txt").write_text((data / "dev_caps.txt").read_text())
    for split in ("train", "dev"):
        np.save(data / f"{split}_ims.npy", np.load(data / f"{split}_ims.npy")[..., 1:])
    assert main(train) == 1
    error = capsys.readouterr().err
    width = f"--data: expected features of width 6, as in the run in {tmp_path / 'run'}, found 5 in {data}"
    assert error == f"caan train: error: {width}; another folder (--out) starts anew\n"


# The rows of the paper's Table 4.
ROWS = {
    "baseline": ("--no-inter", "--intra", "none"),
    "IA": ("--intra", "none"),
    "FA": ("--no-inter", "--intra", "features"),
    "SA": ("--no-inter", "--intra", "semantics"),
    "IA+FA": ("--intra", "features"),
    "CAAN": (),
}


@pytest.mark.parametrize("row", ROWS)
def test_every_row_of_table_4_is_trained_and_evaluated(data, tmp_path, capsys, row):
    run = tmp_path / "run"
    train = ["train", "--data", str(data), "--out", str(run), *SMALL, *ROWS[row], "--average", "0"]
    assert main(train) == 0
    assert "best validation rsum" in capsys.readouterr().out
    model, _, _ = checkpoint.load_model(run)
    assert {name: getattr(model.config, name) for name in ("inter", "intra")} == {
        "inter": True,
        "intra": "semantics",
        **TABLE_4[row],
    }
    assert main(["evaluate", str(run), "--data", str(data)]) == 0
    assert "245 pairs" in capsys.readouterr().out
    # The seven images have other features than a grid's: what is shown needs boxes.
    np.save(data / "test_boxes.npy", np.tile(np.float32([0, 0, 1, 1]), (7, 4, 1)))
    assert main(["show", "pair", str(run), "--data", str(data), "--image", "3", "--out", str(tmp_path / "pair.png")]) == 0
    index = main(["index", str(run), "--data", str(data), "--out", str(tmp_path / "index")])
    if not model.dense:
        assert index == 0
        return
    assert index == 1 and not (tmp_path / "index").exists()
    expected = "caan index: error: intra: expected semantics or none for a gallery, got features: the operator scores that from "
    error = capsys.readouterr().err
    assert error.startswith(expected) and error.count("\n") == 1


def test_captions_of_a_karpathy_file(karpathy_file, features, tmp_path, capsys):
    for split, images in (("train", 4), ("dev", 2)):
        np.save(tmp_path / f"{split}_ims.npy", features[:images])
    data = ["--data", str(tmp_path), "--karpathy", str(karpathy_file)]
    assert main(["train", *data, "--out", str(tmp_path / "run"), *SMALL, "--batch-size", "8", "--validation-images", "0"]) == 0
    assert "4 images, 16 captions" in capsys.readouterr().out
    assert main(["evaluate", str(tmp_path / "run"), *data, "--split", "dev"]) == 0
    assert "2 images, 7 captions" in capsys.readouterr().out


def test_captions_of_a_karpathy_file_through_a_pipe(karpathy_file, features, tmp_path):
    np.save(tmp_path / "train_ims.npy", features[:4])
    np.save(tmp_path / "dev_ims.npy", features[:2])
    reader, writer = os.pipe()
    os.write(writer, karpathy_file.read_bytes())
    os.close(writer)
    data = ["--data", str(tmp_path), "--karpathy", f"/dev/fd/{reader}"]
    assert main(["train", *data, "--out", str(tmp_path / "run"), *SMALL, "--batch-size", "8", "--validation-images", "0"]) == 0
    os.close(reader)


@pytest.mark.parametrize(("images", "where"), [(100, "all 7 images of dev"), (5, "the first 5 of 7 images of dev")])
def test_every_line_of_validation_says_of_what_it_is(data, tmp_path, capsys, images, where):
    run = tmp_path / "run"
    assert main(["train", "--data", str(data), "--out", str(run), *SMALL, "--validation-images", str(images)]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "rsum" in line or "validation" in line]
    # What seven images teach may be no more than chance: a line below the last result warns of it.
    lines = [line for line in lines if not line.startswith("Warning: ")]
    assert len(lines) == 4 and all(f"on {where}" in line for line in lines)
    with (run / "metrics.csv").open(newline="") as file:
        counts = {(row["validation_images"], row["split_images"]) for row in csv.DictReader(file) if row["rsum"]}
    assert counts == {(str(min(images, 7)), "7")}
    assert checkpoint.read(run / "best.safetensors").facts["validated_on"] == where


def test_what_is_wrong_with_the_data_is_one_line(data, tmp_path, capsys):
    def error(*changes):
        assert main(["train", "--data", str(data), "--out", str(tmp_path / "run"), *SMALL, *changes]) == 1
        captured = capsys.readouterr().err
        lines = [line for line in captured.splitlines() if line.startswith("caan")]
        assert len(lines) == 1 and lines[0].startswith("caan train: error: ")
        return lines[0]

    assert "--save-minutes: expected more than 0, got 0.0" in error("--save-minutes", "0")
    assert "error: --decay-epochs: expected at least 0, got nan" in error("--decay-epochs", "1,nan")
    file = tmp_path / "file"
    file.touch()
    assert "error: --out: expected" in error("--out", str(file))
    assert "error: --similarity: expected one of dot, cosine, got 'cosin'" in error("--similarity", "cosin")
    assert "error: --intra: expected one of semantics, features, none, got 'feature'" in error("--intra", "feature")
    assert "nothing_ims.npy: expected a file of the SCAN layout, found none (splits there: dev, test, train)" in error(
        "--train-split", "nothing"
    )
    assert "error: --dropout: expected at least 0 and less than 1, got 1.5" in error("--dropout", "1.5")
    assert "error: --margin: expected a number more than 0, got -1.0" in error("--margin", "-1")
    assert "error: --batch-size: expected at most 35, the captions of train, got 100" in error("--batch-size", "100")
    assert "vocab.json: expected a vocabulary in JSON, found no such file" in error("--vocabulary", str(tmp_path / "vocab.json"))
    features = np.load(data / "train_ims.npy")
    features[2, 1, 3] = np.nan
    np.save(data / "train_ims.npy", features)
    expected = "train_ims.npy: expected finite features, found nan in row 2, image 2, region 1, column 3"
    assert error("--no-standardize").endswith(expected)
    assert error("--no-standardize", "--workers", "1").endswith(expected)


def test_what_to_say_is_said_as_it_is_typed(data, tmp_path, capsys):
    for split in ("train", "dev"):
        (data / f"{split}_caps.txt").write_text("a dog\n" * 5)
        np.save(data / f"{split}_ims.npy", np.load(data / f"{split}_ims.npy")[:5])
    train = ["train", "--data", str(data), "--out", str(tmp_path / "run")]
    assert main(train) == 1
    assert capsys.readouterr().err.endswith("to differ; if every image has one caption, say --captions-per-image 1\n")


def test_ctrl_c_saves_and_says_how_to_go_on(data, tmp_path, capsys, monkeypatch):
    from caan.training import Trainer

    def interrupted(self, batch, images, form):
        signal.raise_signal(signal.SIGINT)
        return step(self, batch, images, form)

    step = Trainer._train_step
    monkeypatch.setattr(Trainer, "_train_step", interrupted)
    train = ["train", "--data", str(data), "--out", str(tmp_path / "run"), *SMALL]
    assert main(train) == 130
    assert (
        "caan train: stopped; the run was saved after step 1, and the same command continues from there" in capsys.readouterr().err
    )
    monkeypatch.undo()
    assert main(train) == 0
    assert "after step 1 of 6" in capsys.readouterr().out


@pytest.mark.parametrize("library", ["tqdm", "tensorboard"])
def test_a_missing_library_is_named(data, tmp_path, library):
    train = ["train", "--data", str(data), "--out", str(tmp_path / "run"), *SMALL]
    script = f"import sys; sys.modules[{library!r}] = None; from caan.commands import main; sys.exit(main({train}))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 1 and "caan_kernels[caan]" in result.stderr and "Traceback" not in result.stderr
