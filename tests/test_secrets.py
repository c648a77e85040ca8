"""Passwords, keys and tokens of a configuration are in nothing that is stored, shown or sent."""

import json
import pickle
import signal
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from composed import composed
from flare.core.errors import CaseError, FlareError, NoRoomError, without_secrets
from flare.rounds.settings import RoundSettings
from flare.runs import door
from flare.runs.folders import is_public, public_config, record_environment
from flare.runs.journal import Journal
from flare.sweeps.jobs import Job, read_jobs, write_sweep
from tiny_run import script

SECRET = "hunter2"
KEYS = (
    "api_key",
    "apikey",
    "API_KEY",
    "wandb_api_key",
    "access_key",
    "private_key",
    "password",
    "db_password",
)
KEYS += ("passwd", "passphrase", "secret", "client_secret", "token", "access_token", "credentials")
URLS = (
    f"https://me:{SECRET}@host/x?y=1",
    f"postgresql+psycopg://me:{SECRET}@host:5432/db",
    f"http://{SECRET}@host",
)


@pytest.mark.parametrize("key", KEYS)
def test_values_of_secret_keys_are_hidden_in_plain_values_and_overrides(key: str) -> None:
    for value in (SECRET, f"{SECRET} and more", f"a '{SECRET}' {{b}}", f"-----BEGIN\n{SECRET}\n"):
        assert without_secrets({"logger": [{key: value, "n": 1}]}) == {"logger": [{key: "***", "n": 1}]}
    assert without_secrets({key: 12345}) == {key: "***"}
    assert without_secrets({key: [SECRET]}) == without_secrets({key: {"of": SECRET}}) == {key: "***"}
    for line in (
        f"+logger.wandb.{key}={SECRET}",
        f"{key}='{SECRET} x'",
        f'{key}="{SECRET}, x"',
        f"{key}={SECRET} x",
    ):
        assert without_secrets([line, "a=b"]) == [f"{line.partition('=')[0]}=***", "a=b"]
    assert without_secrets(f"a=1,x.{key}={SECRET},b=2") == f"a=1,x.{key}=***,b=2"
    for quote in ("", "'", '"'):
        entry = f"{quote}{key}{quote}: "
        told = without_secrets(f"+x={{user: me, {entry}{quote}{SECRET} x{quote}, n: 1}}: expected a")
        assert told == f"+x={{user: me, {entry}***, n: 1}}: expected a"
    assert without_secrets(f"run.py x.{key}={SECRET} b=2") == f"run.py x.{key}=*** b=2"
    assert not is_public(f"logger.wandb.{key}", SECRET)


@pytest.mark.parametrize("url", URLS)
def test_logins_of_urls_are_hidden_and_the_rest_stays(url: str) -> None:
    shown = url.partition("://")[0] + "://***@" + url.rpartition("@")[2]
    assert without_secrets({"uri": url}) == {"uri": shown}
    assert without_secrets(f"logger.mlflow.tracking_uri={url}") == f"logger.mlflow.tracking_uri={shown}"
    assert without_secrets(f"cannot reach {url}: no route") == f"cannot reach {shown}: no route"
    assert not is_public("logger.mlflow.place", url)


@pytest.mark.parametrize(
    "value",
    [
        *("${oc.env:WANDB_API_KEY}", "", None, False, 0),
        {"tokens": 5, "tokenizer": "bpe", "secretary": "x", "keys": ["a"]},
        *("sqlite:////home/me@work/x.db", "me@host", "https://host/a?b=c", "a=b, c: d", "patch=[1,2]"),
        ["token=${oc.env:T}", "x.password='${oc.env:P}'"],
    ],
)
def test_what_is_no_secret_stays(value: object) -> None:
    assert (
        without_secrets(value, "" if isinstance(value, dict | list) else "token" if not value else "x")
        == value
    )
    assert without_secrets({"api_key": "${oc.env:K}"}) == {"api_key": "${oc.env:K}"}


def given(tmp_path: Path) -> list[str]:
    return [
        *("round=mo", f"paths.outputs={tmp_path}", "logger=mlflow"),
        f"logger.mlflow.tracking_uri=https://me:{SECRET}@host/x",
        f"+logger.wandb.api_key={SECRET}",
        f"+logger.wandb.login={{user: me, password: {SECRET}}}",
        f"+model.net.token={SECRET}",
    ]


def assert_clean(folder: Path, *, files: int) -> None:
    found = [path for path in folder.rglob("*") if path.is_file()]
    assert len(found) >= files, found
    assert [path for path in found if SECRET.encode() in path.read_bytes()] == []


def test_what_a_run_stores_of_its_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the configuration names a variable, which is resolved for the record."""
    monkeypatch.setenv("OWN_KEY", SECRET)
    cfg = composed("train", *given(tmp_path), "+logger.wandb.secret=${oc.env:OWN_KEY}")
    plain = OmegaConf.to_container(cfg, resolve=True)
    record_environment(tmp_path / "run", cfg, network={})
    journal = Journal(tmp_path / "journal.jsonl")
    journal.record("mo", {}, plain, {})
    assert_clean(tmp_path, files=3)
    stored = OmegaConf.load(tmp_path / "run" / "config.yaml")
    assert stored.logger.mlflow.tracking_uri == "https://***@host/x"
    assert stored.data == OmegaConf.create(without_secrets(plain["data"]))
    # the run itself has them, and another value is noticed, whatever it is
    assert cfg.logger.wandb.api_key == SECRET
    assert Journal(journal.path).is_current("mo", {}, plain)
    plain["seed"] = 7
    assert Journal(journal.path).why("mo", {}, plain) == "seed: 0 -> 7"
    plain["logger"]["wandb"]["api_key"] = "another"
    assert "another" not in Journal(journal.path).why("mo", {}, plain)


def test_what_trackers_checkpoints_and_the_report_get(tmp_path: Path) -> None:
    cfg = composed("train", *given(tmp_path))
    for public in (public_config(cfg), RoundSettings.from_config(cfg).training.public):
        assert SECRET not in json.dumps(public)
        assert (public["model"]["net"]["token"], public["logger"]["wandb"]["login"]["user"]) == (None, "me")


def test_messages(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    text = f"logger.mlflow.tracking_uri={URLS[0]}: expected a server"
    for error in (FlareError(text), NoRoomError(text), CaseError("a", text)):
        assert SECRET not in str(error)
        assert "expected a server" in str(error)
        assert str(pickle.loads(pickle.dumps(error))) == str(error)
    monkeypatch.setattr("sys.argv", ["train.py", f"logger.x.token={SECRET}", "seed=1"])
    with pytest.raises(SystemExit):
        door._end(door.Stopped(signal.SIGTERM))
    told = capsys.readouterr().err
    assert SECRET not in told
    assert "seed=1" in told


def test_the_jobs_of_a_sweep(tmp_path: Path) -> None:
    for number, value in enumerate((SECRET, f"{SECRET}-2")):
        line = [f"+logger.x.token={value}", f"logger.mlflow.tracking_uri={URLS[0]}", f"seed={number}"]
        Job(str(number), "train", line, "failed", error=f"no answer from {URLS[1]}").write(tmp_path)
    write_sweep(tmp_path)
    assert_clean(tmp_path, files=5)
    assert [job.choices["seed"] for job in read_jobs(tmp_path)] == ["0", "1"]


@pytest.mark.slow
@pytest.mark.parametrize("mode", [[], ["-m"]])
def test_what_hydra_stores_of_a_command(tmp_path: Path, mode: list[str]) -> None:
    """Of a command that is refused as well: its overrides are stored before its work begins."""
    line = [o for o in given(tmp_path) if "model.net" not in o]
    ended = script(
        "train", *mode, *line, "seed=3", "data=flare23", f"data.root={tmp_path}/none", cwd=tmp_path
    )
    assert ended.returncode == 1
    assert_clean(tmp_path, files=4 if not mode else 6)
    (overrides,) = tmp_path.rglob("overrides.yaml")
    assert "seed=3" in OmegaConf.load(overrides)
    stored = OmegaConf.load(overrides.with_name("config.yaml"))
    assert (stored.seed, stored.logger.wandb.api_key, stored.data.split.seed) == (3, "***", 0)
    assert OmegaConf.to_container(stored)["paths"]["run"] == "${paths.outputs}/${name}"
