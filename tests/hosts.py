"""Hosts on one machine: namespaces with a network, processes, /tmp and home of their own.

Every host is a network, mount, PID and UTS namespace; the first one holds the bridge to which all
are wired, so that the machine's own network is never touched and no packet leaves. Ending a host's
first process ends all of its processes, and with them go its mounts and its network: there is
nothing to clean up, and nothing is left where the test itself is killed.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path

TOOLS = ("unshare", "nsenter", "setpriv", "ip", "mount", "rsync", "ssh", "ssh-keygen", "sshd")
_PATH = os.environ["PATH"] + ":/usr/sbin:/sbin"
_UNSHARE = (
    *("unshare", "-n", "-m", "-p", "-u", "--fork", "--mount-proc", "--kill-child"),
    *("bash", "-c"),
)
_PRIVATE = ("/root", "/run", "/tmp")  # each host's own; /tmp last, the hosts' folders lie there


def why_not() -> str | None:
    """Why there can be no hosts on this machine; None: there can."""
    if sys.platform != "linux":
        return "namespaces are Linux's"
    missing = [tool for tool in TOOLS if shutil.which(tool, path=_PATH) is None]
    if missing:
        return f"not installed: {', '.join(missing)} (openssh-server, rsync, iproute2, util-linux)"
    if os.geteuid() != 0:
        return "needs root, for namespaces"
    tried = subprocess.run(
        [*_UNSHARE, "ip link add br0 type bridge && ip link add v0 type veth peer name v1"],
        capture_output=True,
        text=True,
        env=os.environ | {"PATH": _PATH},
    )
    return f"no namespaces here: {tried.stderr.strip()}" if tried.returncode else None


class Host:
    """One host. `folder` holds its home and its /tmp; `/mnt` is the disk that all share."""

    def __init__(self, name: str, address: str, folder: Path, shared: Path, names: str) -> None:
        self.name, self.address, self.folder = name, address, folder
        for private in _PRIVATE:
            (folder / private.strip("/")).mkdir(parents=True)
        (folder / "hosts").write_text(names)
        # pdeathsig: a host does not outlive the test, however that ends.
        self._first = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *_UNSHARE, self._setting_up(shared)],
            env=os.environ | {"PATH": _PATH},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self._first.stdout is not None
        said = self._first.stdout.readline()
        if said != "up\n":
            raise RuntimeError(f"{name} did not come up: {said}{self._first.stdout.read()}")
        children = Path(f"/proc/{self._first.pid}/task/{self._first.pid}/children").read_text()
        self.pid = int(children.split()[0])

    def _setting_up(self, shared: Path) -> str:
        keep = {Path(p).resolve() for p in (sys.prefix, sys.base_prefix)} | {Path(sys.prefix)}
        lines = ["set -e", "mount --make-rprivate /", f"hostname {self.name}"]
        lines.append(f"mount --bind {shared} /mnt")
        lines.append(f"mount --bind {self.folder}/hosts /etc/hosts")
        lines.append("mount -t tmpfs -o size=2g tmpfs /dev/shm")
        for private in _PRIVATE:
            own = self.folder / private.strip("/")
            for path in sorted(p for p in keep if p.is_relative_to(private)):
                inside = own / path.relative_to(private)  # Python itself stays where it is
                lines += [f"mkdir -p {inside}", f"mount --rbind {path} {inside}"]
            lines.append(f"mount --rbind {own} {private}")
        lines += ["ip link set lo up", "mkdir -p /run/sshd", "echo up", "exec sleep infinity"]
        return "\n".join(lines)

    def enter(self, command: str) -> list[str]:
        """The command line that runs a shell command on this host."""
        clean = ["env", "-i", "HOME=/root", f"PATH={_PATH}", "LANG=C.UTF-8", "TERM=dumb"]
        inside = f"cd /root && {{ {command}\n}}"  # --wd would be the machine's own /root
        return [
            "nsenter",
            "-t",
            str(self.pid),
            "-n",
            "-m",
            "-p",
            "-u",
            *clean,
            "bash",
            "-c",
            inside,
        ]

    def run(self, command: str, timeout: float = 60) -> str:
        """What a command says; an error where it fails."""
        done = subprocess.run(
            self.enter(command),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
        )
        if done.returncode:
            raise RuntimeError(
                f"{self.name}: {command} ({done.returncode}):\n{done.stdout[-6000:]}"
            )
        return done.stdout

    def kill(self) -> None:
        """Pull the plug."""
        self._first.kill()
        self._first.wait()


class Hosts:
    """`laptop`, where `ray up` is said, and so many machines that it reaches by ssh only."""

    def __init__(self, folder: Path, n_hosts: int) -> None:
        self.shared = folder / "shared"
        self.shared.mkdir(parents=True)
        wanted = ["laptop", *(f"host{i}" for i in range(n_hosts))]
        addresses = [f"192.0.2.{10 + i}" for i in range(len(wanted))]  # TEST-NET-1 of RFC 5737
        names = "127.0.0.1 localhost\n" + "".join(
            f"{a} {n}\n" for a, n in zip(addresses, wanted, strict=True)
        )
        self.all: list[Host] = []
        try:
            for name, address in zip(wanted, addresses, strict=True):
                self.all.append(Host(name, address, folder / name, self.shared, names))
            self.laptop, *self.machines = self.all
            self._wire()
            self._let_in()
        except BaseException:
            self.close()
            raise

    def _wire(self) -> None:
        bridge = ["nsenter", "-t", str(self.laptop.pid), "-n", "ip"]

        def ip(words: str) -> None:
            subprocess.run([*bridge, *words.split()], check=True, env=os.environ | {"PATH": _PATH})

        ip("link add br0 type bridge")
        ip(f"addr add {self.laptop.address}/24 dev br0")
        ip("link set br0 up")
        for i, host in enumerate(self.machines):
            ip(f"link add v{i} type veth peer name eth0 netns {host.pid}")
            ip(f"link set v{i} master br0 up")
            host.run(f"ip addr add {host.address}/24 dev eth0; ip link set eth0 up")

    def _let_in(self) -> None:
        self.laptop.run("mkdir -p .ssh; ssh-keygen -q -t ed25519 -N '' -f .ssh/id_ed25519")
        key = (self.laptop.folder / "root/.ssh/id_ed25519.pub").read_text()
        settings = textwrap.dedent("""\
            HostKey /root/.hostkey
            UsePAM no
            PasswordAuthentication no
            PermitRootLogin prohibit-password
            AuthorizedKeysFile /root/.ssh/authorized_keys
            StrictModes no
            PidFile /run/sshd.pid
            MaxStartups 100
            """)
        for host in self.machines:
            home = host.folder / "root"
            (home / ".ssh").mkdir()
            (home / ".ssh/authorized_keys").write_text(key)
            (home / ".sshd").write_text(f"ListenAddress {host.address}\n{settings}")
            host.run("ssh-keygen -q -t ed25519 -N '' -f .hostkey")
            sshd = shutil.which("sshd", path=_PATH)
            host.run(f"{shlex.quote(str(sshd))} -f /root/.sshd -E /root/.sshd.log")
            self._wait_for(host)

    def _wait_for(self, host: Host) -> None:
        end = time.monotonic() + 30
        options = "-o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null"
        while True:
            try:
                self.laptop.run(f"ssh -q {options} -i .ssh/id_ed25519 root@{host.address} true")
                return
            except RuntimeError:
                if time.monotonic() > end:
                    log = host.folder / "root/.sshd.log"
                    raise RuntimeError(f"{host.name}: no ssh: {log.read_text()}") from None
                time.sleep(0.5)

    def close(self) -> None:
        """End every host; what ran there ends with it."""
        for host in self.all:
            host.kill()
