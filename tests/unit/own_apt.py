"""An apt that reads an archive for the tests, unprivileged and apart from the machine's own."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.unit import fake_kernel


class Apt:
    """An apt of its own: no file of the machine's is read or written.

    ``sources`` are deb822 stanzas.  ``env`` are further variables of its programs.
    """

    def __init__(self, top: Path, sources: str) -> None:
        self.top = top
        self.env: Mapping[str, str] = {}
        for name in ("lists/partial", "cache/archives/partial", "etc/preferences.d", "download"):
            (top / name).mkdir(parents=True)
        fake_kernel.write(top / "etc/sources.list.d/test.sources", sources)
        for name in ("updates", "triggers", "info"):
            (top / "dpkg" / name).mkdir(parents=True)
        fake_kernel.write(top / "dpkg/status")
        fake_kernel.write(
            top / "apt.conf",
            f'Dir::State "{top}"; Dir::State::lists "{top}/lists";\n'
            f'Dir::State::status "{top}/dpkg/status"; Dir::Cache "{top}/cache";\n'
            f'DPkg::Options {{ "--admindir={top}/dpkg"; }}; Dir::Log "{top}";\n'
            f'Dir::Etc "{top}/etc"; Dir::Etc::parts "/dev/null"; Dir::Etc::main "/dev/null";\n'
            f'Dir::Etc::trusted "/dev/null";\n'
            'APT::Architecture "amd64"; APT::Architectures "amd64"; APT::Sandbox::User "";\n'
            'Dir::Etc::trustedparts "/dev/null"; APT::Machine-ID "0123456789abcdef";\n'
            'Acquire::Languages "none"; Debug::NoLocking "true";\n',
        )

    def __call__(self, *arguments: str, check: bool = True) -> str:
        done = subprocess.run(
            arguments,
            cwd=self.top / "download",
            env={
                "APT_CONFIG": str(self.top / "apt.conf"),
                "PATH": "/usr/bin:/bin",
                "LANG": "C",
                **self.env,
            },
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0 or not check, done.stderr
        return done.stdout + done.stderr
