"""No password is shown or kept."""

from __future__ import annotations

import json
import logging
import os
import random
import string
import subprocess
import sys
from pathlib import Path

import pytest

from kbuild import cli
from kbuild.core import fs, secrets
from kbuild.core.errors import BuildError, UserError
from kbuild.core.model import Settings
from kbuild.core.run import run

PROJECT = Path(__file__).parents[2]
URLS = [
    "redis://:p/w@cache.example",
    "redis://user:p@w@cache.example:6379/3",
    "http://user:pw@mirror.example/debian",
    "http://user:a://b@mirror.example/debian",
    "http://user:8080/x@mirror.example",
    "http://token@mirror.example/debian",
]


@pytest.mark.parametrize("url", URLS)
def test_no_part_of_a_password_is_left(url: str) -> None:
    scheme, _, rest = url.partition("://")
    wanted = f"{scheme}://***@{rest.rpartition('@')[2]}"
    for around in ("{}", "deb [arch=amd64] {} bookworm main", "mirror='{}', next", "\n{}\n"):
        assert secrets.redact(around.format(url)) == around.format(wanted)
    assert secrets.redact_url(url) == wanted
    assert secrets.redact(wanted) == secrets.redact_url(wanted) == wanted


def test_any_password_of_any_characters_is_hidden() -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    letters = string.ascii_letters + string.digits + string.punctuation + "é\xa0\x85\udcff"
    for _ in range(2000):
        password = "".join(chance.choices(letters, k=chance.randrange(1, 12)))
        url = f"http://user:{password}@mirror.example/debian"
        assert secrets.redact(f"see {url} for it") == "see http://***@mirror.example/debian for it"
        raw = url.encode(errors="surrogateescape")
        assert secrets.redact_bytes(raw) == b"http://***@mirror.example/debian"


@pytest.mark.parametrize("text", [":p/w@host", "user:p w@host", "user:a@b@host"])
def test_a_password_in_an_invalid_url_is_hidden_too(text: str) -> None:
    assert secrets.redact_url(text) == "***@host"


@pytest.mark.parametrize(
    "text",
    [
        "https://lore.example/r/20200101.abc@kernel.example",
        "redis+unix:///run/cache@1.sock",
        "http://mirror.example:8080/debian",
        "Someone <someone@mail.example>, see http://mirror.example/",
        "getty@tty1.service",
    ],
)
def test_an_address_that_is_no_password_stays(text: str) -> None:
    assert secrets.redact(text) == text


def test_a_token_of_the_compiler_cache_is_hidden() -> None:
    url = "http://cache.example/x|bearer-token=abc|read-only"
    assert secrets.redact_url(url) == "http://cache.example/x|bearer-token=***|read-only"
    assert secrets.redact_bytes(b"bearer-token=abc") == b"bearer-token=***"


def test_an_error_has_none() -> None:
    error = UserError(*URLS[:1], expected=URLS[1], found=URLS[2], hint=URLS[3])
    shown = f"{error} {error!r} {error.what} {error.found}"
    assert shown.count("***@") == 7
    assert "user" not in shown
    assert "p/w" not in shown


def test_the_log_of_a_program_has_none(tmp_path: Path) -> None:
    log = tmp_path / "run.log"
    # The program prints its password in two pieces, which come as two chunks.
    script = f'printf "$FIRST"; sleep 0.2; echo "$SECOND"; echo {URLS[0]} >&2; exit 4'
    env = {"FIRST": "to http://user:p", "SECOND": "w@host"}
    with pytest.raises(BuildError) as caught:
        run(["sh", "-c", script, URLS[1]], timeout_s=20, log=log, env=env)
    shown = log.read_text() + str(caught.value)
    assert "to http://***@host\n" in shown
    assert "redis://***@cache.example" in shown
    for piece in ("user", "p@w", "pw", "p/w"):
        assert piece not in shown


def test_the_program_itself_gets_what_it_was_given() -> None:
    assert run(["echo", URLS[0]], timeout_s=20).stdout == f"{URLS[0]}\n"


def test_a_manifest_has_none(tmp_path: Path) -> None:
    fs.write_json(tmp_path / "x.json", {"urls": URLS, 'of "them"': URLS[0]})
    read = json.loads((tmp_path / "x.json").read_text())
    assert read["urls"] == [secrets.redact(url) for url in URLS]
    assert read['of "them"'] == "redis://***@cache.example"


def test_settings_in_a_failing_test_show_none(tmp_path: Path) -> None:
    settings = Settings(
        project=tmp_path,
        build=tmp_path,
        cache=tmp_path,
        mirrors=(URLS[2],),
        remote_cache=URLS[0],
    )
    assert "@" not in repr(settings)


def test_log_lines_and_tracebacks_have_none(capsys: pytest.CaptureFixture[str]) -> None:
    formatter = cli._Formatter()
    try:
        raise ValueError(URLS[1])
    except ValueError as error:
        record = logging.LogRecord(
            "kbuild", logging.ERROR, "x", 1, "from %s", (URLS[0],), (ValueError, error, None)
        )
    assert formatter.format(record).splitlines() == [
        "from redis://***@cache.example",
        "ValueError: redis://***@cache.example:6379/3",
    ]
    cli.say(URLS[0])
    assert capsys.readouterr().out == "redis://***@cache.example\n"


@pytest.mark.parametrize(
    "arguments",
    ["doctor", "fetch --offline", "explain --cache redis://:geheim/w@cache.example"],
)
def test_no_task_shows_one_or_keeps_one(arguments: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "invoke", *arguments.split()],
        cwd=PROJECT,
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "INVOKE_BUILD_DIR": str(tmp_path / "build"),
            "INVOKE_CACHE_DIR": str(tmp_path / "cache"),
            "INVOKE_MIRRORS": "http://user:geheim@127.0.0.1:9/debian",
            "INVOKE_REMOTE_CACHE": "redis://:geheim@127.0.0.1:9",
        },
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert "geheim" not in done.stdout + done.stderr
    if "--cache" in arguments:
        assert "redis://***@cache.example" in done.stderr
    kept = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in kept if b"geheim" in path.read_bytes()]
