"""Every command of README, docs and --help is run: here on small data, elsewhere in CI; or a table says why not."""

import importlib
import io
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import cases
import numpy as np
import pytest
from averages import averaging
from documented import ROOT, Command, commands
from PIL import Image

from caan import published
from caan.commands import evaluate, main
from caan.commands.helping import EXAMPLES
from caan.extraction import backbones

pytestmark = pytest.mark.skipif(cases.INTERPRETED or cases.EMULATED, reason="it needs no backend, and runs once")

# What begins with one of these is run here, with further options that make it short; of an option that is there twice, the last
# counts. "caan" alone needs none.
CUT = {
    "caan": "",
    "caan train": "--width 8 --hidden-width 4 --word-width 6 --batch-size 10 --epochs 2 --decay-epochs 1 --validation-images 5"
    " --workers 0",
    "caan extract --photos photos --captions captions.csv --hold-out 50": "--hold-out 6",
    "caan extract --photos photos --captions captions.csv --out data --hold-out 50": "--hold-out 6",
    "caan extract --photos photos --captions dataset_flickr8k.json": "--out other",
    # In the place of the three splits that the line before has made.
    "caan extract --photos photos --captions captions.csv --out data --split test": "--overwrite",
    "python benchmarks/bench_attention.py": "--workload rerank-1x200 --seconds 4",
    "python benchmarks/bench_max_similarity.py": "--workload rerank-8x100 --seconds 2",
    "torchrun --nproc-per-node 2 -m caan evaluate": "",
}
# What begins with one of these is run by another file of CI, in which these words are.
ELSEWHERE = {
    "bash tools/build_docs.sh": ("tests/test_docs.py", '"mkdocs", "build", "--strict"'),
    "bash tools/build_wheel.sh": (".ci/run", "tools/build_wheel.sh"),
    "bash tools/setup.sh": (".ci/run", "tools/setup.sh"),
    "bash tools/try_wheel.sh": (".ci/run", "tools/try_wheel.sh"),
    "caan demo": ("tests/caan/test_demo.py", 'main(["demo",'),
    "caan extract --features": ("tests/caan/test_bottom_up.py", '["extract", "--features",'),
    "CAAN_CUDA_EMULATED=$(python tests/emulated_library.py) python -m pytest": ("tests/test_emulated.py", "CAAN_CUDA_EMULATED"),
    "pip install caan_kernels-": ("tools/try_wheel.sh", 'install "$wheel"'),
    "python -m pytest": (".ci/run", "pytest"),
    "python benchmarks/compile_report.py": ("tests/benchmarks/test_compile_report.py", "import compile_report"),
}
# What begins with one of these runs nowhere in CI.
NOWHERE = {
    "CAAN_CUDA=0 bash tools/setup.sh": "compiles all of it once more, without CUDA",
    "bash tools/build_wheel.sh --cuda": "compiles for all GPUs; a stage of tools/release_check.sh",
    "bash tools/release_check.sh": "takes hours; tests/test_release.py looks at its log",
    "mkdocs serve": "ends with Ctrl-C only; it shows what tests/test_docs.py builds",
    "pip install --no-build-isolation": "compiles all of it once more, as tools/setup.sh does",
    "pip install setuptools": "needs a registry of packages",
    "python benchmarks/gpu_check.py": "needs a GPU; tests/benchmarks/test_gpu_check.py has its stages without one",
    "python tools/build_kernel.py": "compiles all of it once more; a stage of tools/release_check.sh",
    "torchrun --nproc-per-node 8": "needs eight GPUs",
}
HELP = "caan --help"
# Its commands are those of the README, which are run.
TUTORIAL = "docs/photographs.md"
COMMANDS = [
    *(command for command in commands() if command.document != TUTORIAL),
    *(Command(HELP, line) for name, lines in EXAMPLES.items() if name not in ("", "show") for line in lines),
]
LINES = sorted({line for _, line in COMMANDS})
TABLE = [*CUT, *ELSEWHERE, *NOWHERE]

# What the commands of a document are given, of what `world` has; they make the rest themselves.
GIVEN = {
    "README.md": "photos captions.csv more photo.jpg data/f30k_precomp",
    "docs/caan.md": "photos captions.csv more data/f30k_precomp data/coco_precomp runs/coco runs/a runs/b",
    "docs/flickr8k.md": "Flicker8k_Dataset Flickr8k.token.txt Flickr_8k.trainImages.txt Flickr_8k.devImages.txt",
    "docs/pictures.md": "data run runs/inter runs/intra photo.jpg gallery",
    "docs/search.md": "run data photo.jpg queries.txt moved",
    HELP: "photos captions.csv dataset_flickr8k.json data/f30k_precomp data/coco_precomp runs/a runs/b queries.txt",
}
ID = "2090545563_a4e66ec76b"


def entry_of(line):
    """The longest entry of the tables that the command begins with."""
    return max((entry for entry in TABLE if line.startswith(entry)), key=len, default=None)


def test_every_command_is_in_a_table():
    assert not [line for line in LINES if entry_of(line) is None], "commands that nothing runs"
    assert set(TABLE) == {entry_of(line) for line in LINES} and len(TABLE) == len(set(TABLE))
    for entry, (file, words) in ELSEWHERE.items():
        assert words in (ROOT / file).read_text(), entry
    assert set(GIVEN) == {document for document, line in COMMANDS if line.startswith("caan ") and entry_of(line) in CUT}


def test_the_tutorial_has_the_commands_of_the_readme():
    readme = (ROOT / "README.md").read_text()
    path = readme.split("<!-- walk: begin -->")[1].split("<!-- walk: end -->")[0]
    expected = [line.split("#")[0].strip() for line in path.splitlines() if "caan " in line]
    shown = [line for document, line in commands() if document == TUTORIAL and line.startswith("caan ")]
    assert shown == expected and len(shown) == 9


@pytest.mark.parametrize("line", [line for line in LINES if entry_of(line) not in CUT])
def test_what_is_not_run_here_is_understood(line, monkeypatch):
    """A subcommand takes its options, and a program is there and has them."""
    words = shlex.split(line)
    if "caan" in words:
        words = words[words.index("caan") + 1 :]
        seen = []
        monkeypatch.setattr(importlib.import_module(f"caan.commands.{words[0]}"), "run", seen.append)
        assert main(words) == 0 and seen
    for program in (word.rstrip(")") for word in words if word.startswith(("benchmarks/", "tests/", "tools/"))):
        assert (ROOT / program).is_file()
        options = {word for word in words if word.startswith("--")}
        if options and program.endswith(".py"):
            told = subprocess.run([sys.executable, ROOT / program, "--help"], capture_output=True, text=True, cwd=ROOT)
            assert all(option in told.stdout for option in options), told.stdout + told.stderr


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(backbones, "load_backbone", averaging)
    # Folds of as many images as the splits here have.
    monkeypatch.setattr(evaluate, "_FOLD_SIZE", 6)


def caan(line):
    """Run a command of `caan`."""
    print(f"+ {line}")
    assert main(shlex.split(line)[1:]) == 0, line


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Photographs, captions, features, a run and a gallery, each by all the names that documents call it."""
    folder = tmp_path_factory.mktemp("documents")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(backbones, "load_backbone", averaging)
        generator = np.random.default_rng(0)
        names = [f"{ID}.jpg", *(f"{number}.jpg" for number in range(20))]
        for name in names:
            path = Path("photos" if name in names[:18] else "more", name)
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(generator.integers(0, 255, (30, 40, 3), dtype=np.uint8)).save(path)
        shutil.copy("more/19.jpg", "photo.jpg")
        said = ["two dogs run through the snow", "a dog jumps", "two dogs run", "a cat in the snow", "a dog"]
        captions = [(name, f"{text} {'here ' * (number % 3)}") for number, name in enumerate(names[:18]) for text in said]
        Path("captions.csv").write_text("\n".join(["image,caption", *map(",".join, captions)]))
        sentences = [{"filename": name, "split": "test", "sentences": [{"raw": text} for text in said]} for name in names[:6]]
        Path("dataset_flickr8k.json").write_text(json.dumps({"images": sentences}))
        Path("Flickr8k.token.txt").write_text("\n".join(f"{name}#0\t{text}" for name, text in captions))
        Path("Flickr_8k.devImages.txt").write_text("\n".join(names[:6]))
        Path("Flickr_8k.trainImages.txt").write_text("\n".join(names[6:18]))
        Path("queries.txt").write_text("two dogs\na cat\n")
        caan("caan extract --photos photos --captions captions.csv --out data --hold-out 6")
        caan("caan extract --photos more --out data --split more")
        caan(f"caan train --data data --out run --preset cpu {CUT['caan train']}")
        caan("caan index run --data data --out gallery")
        features = Path("f30k_precomp")
        shutil.copytree("data", features)
        for file in features.glob("*_extract.json"):
            file.unlink()
        for file in features.glob("test_*"):
            shutil.copy(file, features / f"testall_{file.name.removeprefix('test_')}")
        shutil.copytree(features, "data/coco_precomp")
        features.rename("data/f30k_precomp")
        shutil.copytree("data", "f8k")
        Path("f8k").rename("data/f8k")
        for name in ("Flicker8k_Dataset", "moved"):
            shutil.copytree("photos", name)
        for name in ("f8k", "inter", "intra", "coco", "f30k", "a", "b"):
            shutil.copytree("run", Path("runs", name))
    return folder


@pytest.fixture
def given(world, tmp_path, monkeypatch):
    """Go to a folder that has what a document's commands are given."""

    def give(names):
        for name in names.split():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            copy = shutil.copytree if (world / name).is_dir() else shutil.copy
            copy(world / name, tmp_path / name)
        monkeypatch.chdir(tmp_path)

    return give


@pytest.mark.parametrize("document", GIVEN)
def test_commands_run(document, given, monkeypatch):
    """Those of one document, one after the other, as a reader would type them."""
    given(GIVEN[document])
    captions = Path("data/f30k_precomp/test_caps.txt")
    if captions.exists():
        # The test of this Flickr30K, and of this COCO.
        marks = tuple(map(published.caption_digest, captions.read_text().splitlines()))
        for name, test in published.TESTS.items():
            monkeypatch.setitem(published.TESTS, name, published.PublishedTest(test.data, 6, test.folds, marks))
    for line in (line for place, line in COMMANDS if place == document):
        entry = entry_of(line)
        if line.startswith("caan ") and entry in CUT:
            monkeypatch.setattr("sys.stdin", io.StringIO("two dogs\nquit\n"))
            caan(f"{line} {CUT[entry]}")
            words = shlex.split(line)
            for option in {"--out", "--html", "--json"} & set(words):
                assert Path(words[words.index(option) + 1]).exists(), line


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("python") and entry_of(line) in CUT])
def test_benchmarks_run(line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    _, program, *words = shlex.split(f"{line} {CUT[entry_of(line)]}")
    assert importlib.import_module(Path(program).stem).main(words) == 0
    assert "workload" in capsys.readouterr().out


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("torchrun") and entry_of(line) in CUT])
def test_processes_start(line, given):
    given("data/f30k_precomp runs/f30k")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    # Standalone: at a port that is free, since another test may have the usual one.
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", *shlex.split(line)[1:]]
    job = subprocess.run(torchrun, env=environment, capture_output=True, text=True)
    # One of the processes prints the table.
    assert job.returncode == 0 and [row[:5] for row in job.stdout.splitlines()].count("test ") == 1, job.stderr
