"""`ray up` for real: three hosts on this machine, a sweep, a host lost in the middle, `ray down`.

The cluster's file is docs/cluster-local.yaml; only addresses, the user, the cores that hosts own up
to and what would need a network (installing) are changed. Every packet stays between the hosts.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from hosts import Host, Hosts, why_not

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).resolve().parents[1]
NAME = "cluster"
UP = "export RAY_UP_enable_autoscaler_v2=0 RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0; "
NO_WORK = ("ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent")  # Ray's own processes
LAPTOP = f"cd /root/checkout; export PATH={sys.prefix}/bin:$PATH PYTHONPATH=/root/checkout; {UP}"


def _sweep() -> dict[str, Any]:
    """The quickstart, shrunk: a fixed trial of each of three backbones, side by side."""
    config = yaml.safe_load((ROOT / "sweeps/quickstart.yaml").read_text())
    recipe = {**config["backbones"][0], "input_size": 64}
    recipe["phases"] = [{"unfreeze": "full", "epochs": 12, "lr": 3e-3}]
    names = ("test_efficientnet", "test_resnet", "test_convnext")
    config |= {
        "name": NAME,
        "data": {"name": "phantom", "n_train": 40, "n_val": 6, "n_test": 8, "size": 96},
        "backbones": [{**recipe, "name": name} for name in names],
        "search": {"trials_per_backbone": 1},
    }
    config["explain"] |= {"n_val": 4, "n_test": 6, "panels": 2}
    return dict(config)


def _cluster(hosts: Hosts) -> dict[str, Any]:
    """docs/cluster-local.yaml for these hosts."""
    config = yaml.safe_load((ROOT / "docs/cluster-local.yaml").read_text())
    head, *workers = hosts.machines
    config["provider"] |= {"head_ip": head.address, "worker_ips": [w.address for w in workers]}
    config["auth"]["ssh_user"] = "root"
    setup = config["setup_commands"]
    (installing,) = [i for i, command in enumerate(setup) if "uv pip install" in command]
    setup[installing] = "echo export PYTHONPATH=/root/raybench >> ~/.bashrc"
    for kind in ("head", "worker"):
        commands = config[f"{kind}_start_ray_commands"]
        # Each host would count all cores of this machine as its own; the head only drives.
        cores = 0 if kind == "head" else 1
        commands[-1] += f" --num-cpus={cores} --object-store-memory=100000000"
    return dict(config)


def _furnish(hosts: Hosts) -> None:
    """What a laptop and machines have: a checkout here, Python and uv there."""
    checkout = hosts.laptop.folder / "root/checkout"
    checkout.mkdir()
    for name in ("pyproject.toml", "constraints.txt", "README.md"):
        shutil.copy(ROOT / name, checkout)
    for name in ("raybench", "sweeps"):
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    (checkout / f"sweeps/{NAME}.yaml").write_text(yaml.safe_dump(_sweep()))
    (checkout / "up.yaml").write_text(yaml.safe_dump(_cluster(hosts)))
    for machine in hosts.machines:
        machine.run(f"mkdir -p raybench .local/bin; ln -s {sys.prefix} raybench/.venv")
        machine.run(f"ln -s {sys.executable} .local/bin/uv")  # found, and then not asked
    hosts.laptop.run(LAPTOP + "ray get-auth-token --generate > /dev/null", timeout=120)


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    made = Hosts(tmp_path / "hosts", 3)
    try:
        _furnish(made)
        yield made
    finally:
        made.close()


def _wait(ready: Callable[[], Any], seconds: float, what: str) -> Any:
    end = time.monotonic() + seconds
    while not (found := ready()):
        assert time.monotonic() < end, f"{what}: not within {seconds:g} s"
        time.sleep(0.5)
    return found


def _events(run: Path, kind: str) -> list[dict[str, Any]]:
    path = run / "events.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    events = [json.loads(line) for line in lines if line.endswith("}")]
    return [e for e in events if e["kind"] == kind]


def _processes(host: Host) -> dict[int, str]:
    lines = host.run("ps -eo pid=,args=").splitlines()
    alive = (line for line in lines if "<defunct>" not in line)  # nobody buries them there
    return {int(line.split()[0]): line.split(maxsplit=1)[1] for line in alive}


def _n_nodes(hosts: Hosts) -> int:
    """How many nodes the cluster's own Ray says are alive."""
    look = (
        "import ray; ray.init(address='auto', logging_level=40); "
        "print('nodes:', sum(n['Alive'] for n in ray.nodes()))"
    )
    asked = f'source ~/.bashrc; export RAY_AUTH_MODE=token; {sys.prefix}/bin/python -c "{look}"'
    said = hosts.machines[0].run(asked, timeout=120)
    found = re.search(r"^nodes: (\d+)$", said, flags=re.M)
    assert found is not None, said
    return int(found[1])


def _works(host: Host) -> bool:
    titles = _processes(host).values()
    return any(t.startswith("ray::") and not t.startswith(NO_WORK) for t in titles)


def _same(one: Path, other: Path) -> None:
    for name in ("scores.parquet", "leaderboard.csv"):
        read = pd.read_parquet if name.endswith("parquet") else pd.read_csv
        a, b = (read(p / name) for p in (one, other))
        assert len(a)
        timings = [c for c in a.columns if "seconds" in c]
        pd.testing.assert_frame_equal(
            a.drop(columns=timings), b.drop(columns=timings), check_exact=True
        )


def test_a_sweep_on_a_cluster_that_loses_a_host_equals_that_of_one_machine(hosts: Hosts) -> None:
    laptop, (head, *workers) = hosts.laptop, hosts.machines
    began = time.monotonic()

    def note(what: str) -> None:
        print(f"{time.monotonic() - began:6.0f} s  {what}", flush=True)

    laptop.run(
        LAPTOP + f"RAY_ADDRESS=local python -m raybench.sweep sweeps/{NAME}.yaml --output /root/a",
        timeout=600,
    )
    note("the sweep on one machine is done")
    laptop.run(LAPTOP + "ray up --yes --no-config-cache up.yaml", timeout=400)
    note("ray up is back")
    _wait(lambda: _n_nodes(hosts) == 3, 300, "three nodes")
    note("three nodes are up")

    run = hosts.shared / "runs" / NAME
    said = laptop.folder / "root/said"
    sweep = f"cd ~/raybench && python -m raybench.sweep sweeps/{NAME}.yaml --output /mnt/runs"
    with said.open("w") as out:
        driver = subprocess.Popen(
            laptop.enter(LAPTOP + f"ray exec --no-config-cache up.yaml '{sweep}'"),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        lost = _lose_a_host(run, workers, driver, said)
        note(f"{lost.name} is lost, while it trained")
        driver.wait(timeout=900)
    finally:
        driver.kill()
    note("the sweep on the cluster is done")
    assert driver.returncode == 0, said.read_text()[-6000:]
    assert "joined a Ray cluster: 2 cores" in said.read_text()

    epochs = pd.DataFrame(_events(run, "epoch"))
    assert dict(epochs.groupby("trial_id").epoch.nunique()) == {f"t000{i}": 12 for i in range(3)}
    _same(laptop.folder / "root/a" / NAME, run)

    (worker,) = [w for w in workers if w is not lost]
    key = "ssh -q -o StrictHostKeyChecking=no -i ~/.ssh/id_ed25519"
    stop = "RAY_AUTH_MODE=token ~/raybench/.venv/bin/ray stop"
    laptop.run(LAPTOP + f"{key} root@{worker.address} '{stop}'", timeout=120)
    laptop.run(LAPTOP + "ray down --yes up.yaml", timeout=200)
    note("ray down is back")
    for host in (head, worker):
        left = [line for line in _processes(host).values() if "raylet" in line or "gcs_" in line]
        assert left == [], host.name


def _lose_a_host(
    run: Path, workers: list[Host], driver: subprocess.Popen[bytes], said: Path
) -> Host:
    """Pull the plug of a host that is training, once an epoch of a trial is saved."""

    def training() -> Host | None:
        assert driver.poll() is None, said.read_text()[-6000:]
        if not _events(run, "epoch") or len(_events(run, "trial_finished")) > 1:
            return None
        busy = [w for w in workers if _works(w)]
        return busy[0] if busy else None

    lost: Host = _wait(training, 400, "a worker that trains")
    lost.kill()
    assert len(_events(run, "trial_finished")) < 3, "all was trained before the host was lost"
    return lost
