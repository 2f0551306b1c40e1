"""What `--help` shows beside the options, options in errors as they are typed, and completion in a shell."""

import argparse
import difflib
import os
import re
from collections.abc import Iterator, Sequence
from importlib import import_module

_SHOW = {
    "show pair": (
        "caan show pair runs/mine --data data --image 0 --out pair.html",
        'caan show pair runs/mine --data data --image 3 --text "a dog jumps" --out pair.png',
    ),
    "show training": (
        "caan show training runs/mine --out training.png",
        "caan show training runs/a runs/b --out both.html",
    ),
    "show retrieval": (
        "caan show retrieval runs/mine --data data --out page.html",
        "caan show retrieval runs/mine --data data --direction image --queries 20 --out page.html",
    ),
}
# By what is typed after "caan".
EXAMPLES = {
    "": (
        "caan demo",
        "caan train --help",
        'eval "$(register-python-argcomplete caan)"    # bash: the tab key completes commands and options',
    ),
    "extract": (
        "caan extract --photos photos --captions captions.csv --hold-out 50 --out data",
        "caan extract --photos photos --captions dataset_flickr8k.json --out data",
        "caan extract --features test.tsv --captions dataset_coco.json --out data --split test",
    ),
    "train": (
        "caan train --data data/f30k_precomp --out runs/f30k",
        "caan train --data data --out runs/mine --preset cpu --epochs 12 --lr 5e-4",
        "caan train --data data/coco_precomp --out runs/coco --preset coco --precision bf16 --workers 4",
    ),
    "evaluate": (
        "caan evaluate runs/f30k --data data/f30k_precomp --baseline f30k",
        "caan evaluate runs/coco --data data/coco_precomp --split testall --protocol both --baseline coco1k",
        "caan evaluate runs/a runs/b --data data/f30k_precomp --json figures.json",
    ),
    "index": (
        "caan index runs/mine --data data --out gallery",
        "caan index runs/mine --data data --split dev --out gallery --check 100",
    ),
    "search": (
        'caan search gallery "two dogs run through the snow"',
        'caan search gallery "two dogs" --top 5 --html found.html',
        "caan search gallery --queries queries.txt --json found.jsonl",
    ),
    "show": tuple(examples[0] for examples in _SHOW.values()),
    **_SHOW,
    "demo": ("caan demo", "caan demo --out trial --scenes 200"),
}


class HelpFormatter(argparse.HelpFormatter):
    """Wraps paragraphs, and leaves indented lines, examples and tables, as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        blocks = []
        for line in text.split("\n"):
            raw = line.startswith(" ")
            if blocks and raw == blocks[-1][0] and line and blocks[-1][1]:
                blocks[-1][1].append(line)
            else:
                blocks.append((raw, [line] if line else []))
        fill = super()._fill_text
        return "\n".join("\n".join(lines) if raw else fill(" ".join(lines), width, indent) for raw, lines in blocks)


def complete_parsers(parser: argparse.ArgumentParser, name: str = "") -> None:
    """Have the help of `caan`, of its commands and of their parts end with examples, and what each has parsed name its parser.

    Args:
        parser: with all that belongs to it.
        name: its key of `EXAMPLES`.
    """
    parser.formatter_class = HelpFormatter
    parser.set_defaults(parser=parser)
    examples = "examples:\n" + "\n".join(f"  {line}" for line in EXAMPLES[name])
    parser.epilog = "\n\n".join(filter(None, (examples, parser.epilog)))
    for word, part in _parts(parser):
        complete_parsers(part, f"{name} {word}".strip())


def check_options(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """End as a command line that cannot be understood does, if a command has no such option; with the nearest that it has.

    argparse tells first which options are missing: one of these may be the one that was misspelt.
    """
    if {"-h", "--help"} & set(words):
        return
    for word in words:
        parts = dict(_parts(parser))
        if word == "--":
            return
        if parts:
            parser = parts.get(word, parser)
        elif word.startswith("--") and " " not in word and (option := word.split("=")[0]) not in parser._option_string_actions:
            known = [name.lstrip("-") for name in parser._option_string_actions]
            near = difflib.get_close_matches(option.lstrip("-"), known, n=1)
            hint = f"; did you mean --{near[0]}?" if near else ""
            parser.error(f"unrecognized arguments: {option}{hint}")


def options_as_typed(parser: argparse.ArgumentParser, message: str) -> str:
    """An error of a Python function in the words of a command line: an option in place of the value's name that it begins with,
    "batch_size: ...", and "none" among the values; likewise where it tells to "say captions_per_image=1"."""
    options = _options(parser)
    if (found := re.match(r"([a-z]\w*): ", message)) and found[1] in options:
        message = f"{options[found[1]]}{message[len(found[1]) :]}".replace(", None, got ", ", none, got ", 1)
    return re.sub(r"\bsay ([a-z]\w*)=", lambda found: f"say {options[found[1]]} " if found[1] in options else found[0], message)


def complete_in_shell(parser: argparse.ArgumentParser) -> None:
    """Answer a shell that asks what could be typed next, and end; do nothing where none does."""
    if "_ARGCOMPLETE" in os.environ:
        import argcomplete

        # `main` may have made only the parser of the command that it runs, and here it runs none.
        typed = os.environ.get("COMP_LINE", "").split()
        for name, part in _parts(parser):
            if name in typed and part.get_default("run") is None:
                import_module(f".{name}", __package__).add_arguments(part)
        argcomplete.autocomplete(parser)


def _parts(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.items()


def _options(parser: argparse.ArgumentParser) -> dict[str, str]:
    """The long option of each value that has one."""
    found = {}
    for part in (parser, *(part for _, part in _parts(parser))):
        for action in part._actions:
            if action.option_strings:
                found[action.dest] = max(action.option_strings, key=lambda option: option.startswith("--"))
    return found
