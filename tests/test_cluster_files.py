"""The cluster files, checked without a cloud: Ray's schema, EC2's own model, every command."""

from __future__ import annotations

import copy
import functools
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
FILES = ("cluster.yaml", "docs/cluster-local.yaml")
DOC = "docs/cluster.md"


def _read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / name).read_text())
    return found


@functools.cache
def _run_instances() -> Any:
    """EC2's own model of what starts an instance, as botocore carries it; large, so read once."""
    import botocore.session

    model = botocore.session.get_session().get_service_model("ec2")
    return model.operation_model("RunInstances").input_shape


def _mistakes(node_config: dict[str, Any]) -> str:
    """What EC2's model says against a node_config; empty: nothing."""
    from botocore.validate import ParamValidator

    shape = _run_instances()
    report = ParamValidator().validate({**node_config, "MinCount": 1, "MaxCount": 1}, shape)
    return str(report.generate_report()) + _not_in(node_config, shape)


def _not_in(value: Any, shape: Any, path: str = "node_config") -> str:
    """Keys that the model has not, and values that its enumerations have not, at any depth."""
    if shape.type_name == "structure":
        unknown = [f" {path}.{k} is unknown" for k in value if k not in shape.members]
        inner = [
            _not_in(v, shape.members[k], f"{path}.{k}")
            for k, v in value.items()
            if k in shape.members
        ]
        return "".join(unknown + inner)
    if shape.type_name == "list":
        return "".join(_not_in(v, shape.member, f"{path}[{i}]") for i, v in enumerate(value))
    if getattr(shape, "enum", None) and value not in shape.enum:
        return f" {path} is {value}"
    return ""


@pytest.mark.parametrize("name", FILES)
def test_ray_takes_the_file(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    monkeypatch.chdir(ROOT)
    validate_config(prepare_config(copy.deepcopy(_read(name))))
    for target, source in _read(name)["file_mounts"].items():
        assert target.startswith("~/")
        assert source.startswith("~/.ray/") or (ROOT / source).exists(), source


@pytest.mark.parametrize("name", FILES)
def test_ray_refuses_a_field_that_it_does_not_know(name: str) -> None:
    import jsonschema
    from ray.autoscaler._private.util import prepare_config, validate_config

    with pytest.raises(jsonschema.ValidationError, match="idle_timeout"):
        validate_config(prepare_config({**_read(name), "idle_timeout": 5}))


def test_ec2_knows_every_key_of_every_node() -> None:
    for name, kind in _read("cluster.yaml")["available_node_types"].items():
        assert _mistakes(kind["node_config"]) == "", name


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("InstanceTyp",), "g5.xlarge"),
        (("InstanceType",), "g5.xxlarge"),
        (("InstanceMarketOptions", "MarketTyp"), "spot"),
        (("InstanceMarketOptions", "MarketType"), "spott"),
        (("MetadataOptions", "HttpToken"), "required"),
        (("BlockDeviceMappings",), [{"DeviceName": "/dev/sda1", "Ebs": {"VolumSize": 9}}]),
        (("BlockDeviceMappings",), [{"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": "9"}}]),
    ],
)
def test_a_typing_mistake_in_a_node_config_is_found(path: tuple[str, ...], value: Any) -> None:
    config = copy.deepcopy(_read("cluster.yaml")["available_node_types"]["gpu_spot"]["node_config"])
    place = config
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    assert path[0] in _mistakes(config)


@pytest.mark.parametrize("name", FILES)
def test_every_ray_process_authenticates_and_the_dashboard_stays_on_loopback(name: str) -> None:
    cluster = _read(name)
    assert "~/.ray/auth_token" in cluster["file_mounts"]
    head, worker = (cluster[f"{kind}_start_ray_commands"] for kind in ("head", "worker"))
    for command in [*head, *worker]:
        assert re.search(r"RAY_AUTH_MODE=token .*ray st(art|op)|RAY_AUTH_MODE=token ray", command)
    assert "--dashboard-host=127.0.0.1" in head[-1]
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in head[-1]
    assert "$RAY_HEAD_IP:6379" in worker[-1]


@pytest.mark.parametrize("name", FILES)
def test_every_option_of_ray_start_exists(name: str) -> None:
    from ray.scripts.scripts import start

    known = {option for parameter in start.params for option in parameter.opts}
    cluster = _read(name)
    for command in [*cluster["head_start_ray_commands"], *cluster["worker_start_ray_commands"]]:
        given = {word.split("=")[0] for word in shlex.split(command) if word.startswith("--")}
        assert given <= known


@pytest.mark.parametrize("name", [*FILES, DOC])
def test_nothing_of_this_machine_and_no_registry_is_named(name: str) -> None:
    text = (ROOT / name).read_text()
    assert not re.search(r"index-url|extra-index|pypi|/tmp/|/home/(?!ubuntu)", text)
    assert str(Path(__file__).resolve().parents[1]) not in text, "no path of this checkout"
    assert not re.search(r"ami-[0-9a-f]{8,}|AKIA|\b10\.\d+\.\d+\.\d+", text)


def _commands(text: str) -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", text, flags=re.S)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]


def test_every_sweep_in_the_documentation_is_a_sweep_that_raybench_takes() -> None:
    from raybench.cli.arguments import parse
    from raybench.config import load_config

    n_found = 0
    for line in _commands((ROOT / DOC).read_text()):
        found = re.search(r"raybench\.sweep ([^'\"#&|;]*)", line)
        if found is None:
            continue
        arguments = parse(shlex.split(found.group(1)))
        assert arguments.sweep is not None
        load_config(ROOT / arguments.sweep, arguments.overrides)
        n_found += 1
    assert n_found >= 3


def test_every_ray_command_in_the_documentation_exists() -> None:
    from ray.scripts.scripts import cli

    called = re.findall(
        r"\bray (up|down|exec|attach|rsync-up|rsync-down|submit|job|get-auth-token|[a-z-]+) ",
        "\n".join(line.split("#")[0] for line in _commands((ROOT / DOC).read_text())),
    )
    assert {"up", "down", "exec", "attach"} <= set(called)
    assert set(called) <= set(cli.commands)
