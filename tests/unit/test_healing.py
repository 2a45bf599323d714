"""Damaged results in the cache and in build/ are made again, and never cause a traceback.

Trees are in test_source and test_patches, roots in test_roots, kernels in test_kernel, packages in
test_results, test_pipeline and test_publishing, snapshots in test_vm_snapshot.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from kbuild.core import fs, sandbox
from kbuild.core.model import Kernel, Root, Settings, Target
from kbuild.core.sandbox import Bind
from kbuild.fetch import roots
from kbuild.guest import image, programs, qemu
from kbuild.guest.qemu import Choice
from kbuild.guest.spec import TCG, Accelerator
from kbuild.kernel import compilation, icecream, module, planning
from kbuild.kernel.module import BuiltModule
from kbuild.lab import kept_trials
from kbuild.pipeline import stages
from kbuild.pipeline.stage import Made
from kbuild.report import kernels
from tests.unit import damage, fake_kernel, toy

every_harm = pytest.mark.parametrize("harm", damage.EVERY.values(), ids=damage.EVERY)
Harm = Callable[[Path], None]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    toy.write(tmp_path / "project/reader.c", "int main(void) { return 0; }\n")
    toy.write(tmp_path / "project/kmod/format.h", "/* format */\n")
    return Settings(project=tmp_path / "project", build=tmp_path / "b", cache=tmp_path / "c")


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return Root("bookworm", tmp_path / "root", "digest")


class Compiler:
    """Stands in for a root: writes what the command is to make, and counts how often."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, root: Root, names: Sequence[str]) -> None:
        self.runs = 0
        self.names = names
        monkeypatch.setattr(sandbox, "enter", self)
        monkeypatch.setattr(roots, "compile_root", lambda *_: root)

    def __call__(self, *_: object, binds: Sequence[Bind], **__: object) -> None:
        self.runs += 1
        (out,) = (bind.source for bind in binds if bind.writable)
        for name in self.names:
            toy.write(out / name, f"what {name} is\n")


@every_harm
def test_a_program_for_guests(
    settings: Settings, root: Root, monkeypatch: pytest.MonkeyPatch, harm: Harm
) -> None:
    compiler = Compiler(monkeypatch, root, ["reader"])
    sources = [settings.project / "reader.c"]
    made = programs.compile_programs(settings, root, sources)["reader"]
    harm(made)
    for _ in range(2):
        programs.compile_programs(settings, root, sources)
        assert made.read_text() == "what reader is\n"
        assert compiler.runs == 2


@every_harm
def test_the_compiler_for_icecreams_workers(
    settings: Settings, root: Root, monkeypatch: pytest.MonkeyPatch, harm: Harm
) -> None:
    compiler = Compiler(monkeypatch, root, ["0123.tar.gz"])
    made = icecream.compiler_environment(settings, root)
    harm(made)
    for _ in range(2):
        assert icecream.compiler_environment(settings, root) == made
        assert made.read_text() == "what 0123.tar.gz is\n"
        assert compiler.runs == 2


@pytest.mark.parametrize("victim", ["disk.img", "image.json", "kernels/boot/vmlinuz-6.1"])
@pytest.mark.parametrize("harm", damage.VISIBLE.values(), ids=damage.VISIBLE)
def test_a_guests_disk(
    settings: Settings, root: Root, monkeypatch: pytest.MonkeyPatch, victim: str, harm: Harm
) -> None:
    filled = []

    def fill(scratch: Path, *_: object) -> None:
        filled.append(scratch)
        toy.write(scratch / "disk.img", "ext4")
        toy.write(scratch / "kernels/boot/vmlinuz-6.1", "vmlinuz")
        fs.write_json(scratch / "image.json", {"disk": "disk.img", "kernels": ["6.1"]})

    monkeypatch.setattr(image, "_fill", fill)
    home = settings.build / "guest"

    def make() -> image.GuestImage:
        return image.make(
            root,
            repo=None,
            packages=[],
            debs=[],
            tested=settings.project / "kmod" / "format.h",
            home=home,
            inputs={},
            log=settings.build / "guest.log",
        )

    first = make()
    harm(home / victim)
    assert make() == make() == first
    assert len(filled) == 2


@every_harm
def test_a_module(
    settings: Settings, root: Root, monkeypatch: pytest.MonkeyPatch, harm: Harm
) -> None:
    runs = []

    def build(*_: object, out: Path, **__: object) -> BuiltModule:
        runs.append(out)
        toy.write(out / "cplayground.ko", "module")
        return BuiltModule(out / "cplayground.ko", "6.1", ("stock",), "6.1 SMP", 1.0)

    monkeypatch.setattr(module, "build", build)
    monkeypatch.setattr(stages, "kernel_headers", lambda _: Path("/nowhere"))
    built = fake_kernel.kernel(settings.project)
    headers = fake_kernel.package(settings.build, f"linux-headers-{built.release}", "1")
    made = Made(
        settings, built.target, base=built.base, root=root, kernel=built, kernel_packages=(headers,)
    )
    first = stages.built_module(made).ensure()
    for number, name in enumerate(["module.built", "module/cplayground.ko", "module.json"]):
        if (name, harm) == ("module.json", damage.rotten):
            continue
        harm(made.where.version / name)
        assert stages.built_module(made).ensure() == first
        assert stages.built_module(made).ensure() == first
        assert len(runs) <= number + 2
    assert len(runs) >= 3


@pytest.mark.parametrize("harm", damage.VISIBLE.values(), ids=damage.VISIBLE)
def test_which_accelerator_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harm: Harm
) -> None:
    tried = []

    def try_kvm(kernel: Kernel, _: Accelerator) -> Choice:
        tried.append(kernel)
        return Choice(TCG, "seen")

    kvm = Accelerator("kvm", 1.0, device=tmp_path)
    monkeypatch.setattr(qemu, "_try_kvm", try_kvm)
    one = Kernel("6.1", "lab", tmp_path)
    first = qemu.choose_accelerator(tmp_path, one, kvm=kvm)
    (kept,) = tmp_path.glob("accelerator/*.json")
    harm(kept)
    if harm is damage.edited:
        kept.write_text("[]")
    again = [qemu.choose_accelerator(tmp_path, one, kvm=kvm) for _ in range(2)]
    assert again == [first, first]
    assert len(tried) == 2


@every_harm
def test_how_many_objects_a_kernel_has_is_a_guess(tmp_path: Path, harm: Harm) -> None:
    distro = toy.make(tmp_path / "distro")
    one = Settings(project=tmp_path, build=tmp_path / "b", cache=tmp_path / "c")
    plan = planning.make_plan(
        one,
        Target("bookworm", "cloud-amd64"),
        distro.base,
        release="6.1.0-56-cplayground-cloud-amd64",
        package_version="6.1.192-2+cplayground1",
        distro_config=distro.headers / f"usr/src/linux-headers-{toy.RELEASE}/.config",
        timestamp=0,
        pristine=distro.pristine,
    )
    usual = compilation.expected_objects(one, plan)
    kept = compilation._counts(one, plan)
    fs.write_atomic(kept, "4711\n")
    assert compilation.expected_objects(one, plan) == 4711
    harm(kept)
    kept.write_bytes(b"\xff\xfe") if kept.exists() else None
    assert compilation.expected_objects(one, plan) == usual


@pytest.mark.parametrize("content", [b"", b"[", b"[3]", b"{}", b'[{"mutant": 1}]', b"\xff"])
def test_trials_of_mutants_are_tried_again(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "trials.json"
    path.write_bytes(content)
    assert kept_trials.load(path) == ()


@pytest.mark.parametrize("content", [b"", b"[", b"[]", b"{}", b"\xff"])
def test_a_damaged_record_leaves_the_other_kernels_in_the_report(
    settings: Settings, content: bytes
) -> None:
    for flavour in ("cloud-amd64", "lab"):
        path = settings.build / "bookworm" / flavour / "record.json"
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
    assert kernels.last_built(settings, fake_kernel.base()) is None
