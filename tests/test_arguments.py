"""The command line of a sweep, and its help page. About 1 second."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
from pydantic import BaseModel

from raybench.cli.arguments import QUICKSTART, help_text, parse
from raybench.config import SweepConfig
from raybench.errors import ConfigError
from raybench.settings import Choice, Range
from raybench.sweep import main


def test_without_words_it_is_the_quickstart() -> None:
    plain = parse([])
    assert plain.sweep == QUICKSTART
    assert plain.sweep.is_file()
    assert plain.overrides == ()
    assert {plain.dry_run, plain.resume, plain.overwrite, plain.help} == {False}


@pytest.mark.parametrize("flag", ["dry_run", "resume", "overwrite", "help"])
def test_flags_stand_anywhere(flag: str) -> None:
    word = f"--{flag.replace('_', '-')}"
    for argv in ([word, "a.yaml", "--seed", "1"], ["a.yaml", "--seed", "1", word]):
        read = parse(argv)
        assert getattr(read, flag) is True
        assert sum([read.dry_run, read.resume, read.overwrite, read.help]) == 1
        assert (read.sweep, read.overrides) == (Path("a.yaml"), (("seed", "1"),))
    assert parse(["-h"]).help


def test_a_key_takes_the_next_word_or_what_follows_the_equals_sign() -> None:
    argv = ["--seed", "-1", "my sweeps/a.yaml", "--data.root=b=c", "--x.y", "{low: 1, high: 2}"]
    argv += ["--explain.target=--odd", "--output="]
    read = parse(argv)
    assert read.sweep == Path("my sweeps/a.yaml")
    assert read.overrides == (
        ("seed", "-1"),
        ("data.root", "b=c"),
        ("x.y", "{low: 1, high: 2}"),
        ("explain.target", "--odd"),
        ("output", ""),
    )


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--seed"], "--seed: expected a value after it, found the end of the line"),
        (["--seed", "--resume"], "--seed: expected a value after it, found --resume"),
        (["--data.root", "--seed", "1"], "--data.root: expected a value after it, found --seed"),
        (["a.yaml", "b.yaml"], "b.yaml: expected one sweep file, found a.yaml already"),
        (["--dryrun", "a.yaml"], "--dryrun: no such flag; did you mean --dry-run?"),
        (["a.yaml", "--overwrit"], "--overwrit: no such flag; did you mean --overwrite?"),
        (["--resume=true"], "--resume=true: --resume takes no value"),
        (["-x"], "-x: expected a flag (--dry-run, --resume, --overwrite, --help, -h) or a dotted"),
        (["--"], "--: expected a flag"),
        (["--a..b", "1"], "--a..b: expected a flag"),
    ],
)
def test_a_line_that_cannot_be_read_is_refused(argv: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse(argv)
    assert error.value.problems[0].startswith(said)


def test_every_mistake_of_the_line_is_reported_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        parse(["a.yaml", "b.yaml", "-x", "--resume=1", "--seed"])
    assert [p.partition(":")[0] for p in error.value.problems] == [
        "b.yaml",
        "-x",
        "--resume=1",
        "--seed",
    ]


def models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [] if annotation in (Range, Choice) else [annotation]
    return [m for part in get_args(annotation) for m in models(part)]


def leaves(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, Any]]:
    """Dotted keys of all settings below a model; a list's element is called by its name or N."""
    for name, field in model.model_fields.items():
        below = models(field.annotation)
        if not below:
            yield f"{prefix}{name}", field
        for member in below:
            key = f"{prefix}{name}"
            if get_origin(field.annotation) is tuple:
                tags = get_args(member.model_fields["name"].annotation) if len(below) > 1 else "N"
                key = f"{key}.{tags[0]}"
            yield from leaves(member, f"{key}.")


def test_help_lists_every_setting_with_type_default_and_meaning() -> None:
    page = help_text()
    assert max(map(len, page.splitlines())) <= 92
    paragraphs = [" ".join(p.split()) for p in re.split(r"\n(?=  --)", page)]
    listed: dict[str, str] = {}
    for p in paragraphs:  # several members of a family may have a setting of one name
        key = p.split()[0].removeprefix("--")
        listed[key] = f"{listed.get(key, '')} {p}"
    found = list(leaves(SweepConfig, ""))
    assert len(found) > 80
    for key, field in found:
        line = listed[key]
        meaning = " ".join((field.description or "").split())
        assert f"--{key} <" in " ".join(line.split()), key
        assert meaning in " ".join(line.split()), key
        if field.is_required() and not key.startswith("data."):
            assert "(required)" in line, key


@pytest.mark.parametrize(
    "line",
    [
        "--seed <int, at least 0, at most 2147483647> = 0 of training and search",
        "--name <str> (required) name of the sweep and its folder",
        "--preprocess.lung_masking <bool|searched> = true set pixels outside the lung mask to 0",
        "--backbones.N.phases.N.lr <float|searched, above 0> (required) learning rate at its start",
        "--backbones.N.optimizer <adam|adamw|sgd> = adam the optimiser",
        "--explain.n_val <int|null, at least 1> = null Val images with infection explained",
        "--explain.explainers.lime.n_samples <int, at least 10, at most 1000000> = 448",
        "(explain.explainers: grad_cam) Activations of one layer, weighted by",
        "(data: phantom) Phantom chest X-rays",
        "--dry-run print the resolved configuration and the plan, and stop",
    ],
)
def test_help_reads_well(line: str) -> None:
    assert line in " ".join(help_text().split())


def test_help_is_printed_and_nothing_is_checked(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nowhere.yaml", "--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: python -m raybench.sweep")


def test_a_mistake_is_one_message_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--dryrun"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("raybench: 1 mistake in the configuration:\n  --dryrun: no such")
