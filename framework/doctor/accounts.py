"""Where models, numbers and time come from: the hub, W&B and Slurm. Secrets are never shown."""

from __future__ import annotations

import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import torch

from ..distributed import launched
from ..wandb_view import CLOUD, key_for
from .finding import Finding, within
from .folder import space

ANSWER = 5.0
"""Seconds for a server to answer; a name that is looked up in vain may take as long again."""
TRUE = {"1", "ON", "YES", "TRUE"}
LITTLE_TIME = 10 * 60.0
"""Seconds: jobs are warned five minutes before the end, and starting takes some."""


def hub() -> list[Finding]:
    """Where models are kept, whether the hub is asked, and whether somebody is logged in."""
    home = _hub_home()
    cache = Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
    kept = len(list(cache.glob("models--*"))) if cache.is_dir() else 0
    existing = cache.absolute()
    while not existing.exists():
        existing = existing.parent
    findings = [space("hub cache space", existing, "export HF_HOME=<a folder with more room>")]
    if not os.access(existing, os.W_OK):
        found, remedy = f"{existing} is not writable", "export HF_HOME=<a folder of yours>"
        findings.append(Finding("hub cache", "warn", found, remedy))
    offline = [n for n in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE") if _is_true(n)]
    found = f"{cache}: {kept} models"
    if offline:
        findings.append(Finding("hub", "pass", f"{offline[0]}: nothing is downloaded; {found}"))
    else:
        server = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
        remedy = "export HF_HUB_OFFLINE=1 and first download the models on a login node"
        findings.append(_reached("hub", server, found, remedy))
    findings.append(Finding("hub token", "pass", _token(home)))
    return findings


def _hub_home() -> Path:
    if os.environ.get("HF_HOME"):
        return Path(os.environ["HF_HOME"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface"


def _is_true(name: str) -> bool:
    return os.environ.get(name, "").upper() in TRUE


def _token(home: Path) -> str:
    """Where a token is; what it is stays there."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if os.environ.get(name):
            return f"in {name}"
    path = Path(os.environ.get("HF_TOKEN_PATH") or home / "token")
    return f"in {path}" if path.is_file() else "none: public models only"


def wandb_login(environment: Mapping[str, str] = os.environ) -> Finding:
    """Whether runs are shown online, and by whose word."""
    mode = environment.get("WANDB_MODE")
    server = environment.get("WANDB_BASE_URL", f"https://{CLOUD[0]}")
    if mode in {"offline", "disabled", "dryrun"}:
        return Finding("W&B", "pass", f"WANDB_MODE={mode}: upload later with `wandb sync`")
    where = key_for(server, environment)
    if where is None:
        host = urlsplit(server).hostname or ""  # the address may hold a password
        found, remedy = f"WANDB_MODE=online, but no key for {host}", "wandb login"
        if mode == "online":
            return Finding("W&B", "fail", found, remedy)
        return Finding("W&B", "pass", "not logged in: recorded offline, `wandb sync` uploads")
    remedy = "export WANDB_MODE=offline on nodes without internet, and `wandb sync` later"
    return _reached("W&B", server, f"logged in by {where}", remedy)


def _reached(name: str, server: str, found: str, remedy: str) -> Finding:
    """Whether a server answers at all, through the proxies that are set."""
    host = urlsplit(server).hostname or ""  # the address may hold a password
    if urlsplit(server).scheme not in {"http", "https"}:
        return Finding(name, "fail", f"{found}; no http(s) address is set", remedy)
    request = urllib.request.Request(server, method="HEAD")  # noqa: S310 (the scheme is checked)
    try:
        within(2 * ANSWER, lambda: urllib.request.urlopen(request, timeout=ANSWER).close())  # noqa: S310
    except urllib.error.HTTPError:  # it answered
        pass
    except OSError:
        return Finding(name, "warn", f"{found}; {host} is not reached", remedy)
    return Finding(name, "pass", f"{found}; {host} is reached")


def slurm() -> list[Finding]:
    """The job, its GPUs and its time; a bare srun, whose processes do not know each other."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return [Finding("Slurm", "pass", "not in a job")]
    nodes, tasks = os.environ.get("SLURM_NNODES", "1"), os.environ.get("SLURM_NTASKS", "1")
    found = f"job {job}, {nodes} nodes ({os.environ.get('SLURM_JOB_NODELIST', 'unknown')})"
    findings = []
    if not launched() and "SLURM_STEP_ID" in os.environ and int(tasks) > 1:
        remedy = "start through slurm/doctor.sbatch: one torchrun per node"
        findings.append(Finding("Slurm", "fail", f"{found}: {tasks} tasks, each alone", remedy))
    else:
        findings.append(Finding("Slurm", "pass", found))
    return [*findings, *_slurm_gpus(), *_slurm_time(job)]


def _slurm_gpus() -> list[Finding]:
    """Whether torchrun's processes see all of the node's GPUs: --gpus-per-task hides the others."""
    given = os.environ.get("SLURM_GPUS_ON_NODE", "")
    if not given.isdigit() or int(given) == 0:
        return []
    seen = torch.cuda.device_count()
    found = f"{given} on this node, {seen} visible"
    if seen < int(given):
        remedy = "ask with --gpus-per-node, not --gpus-per-task or --gpu-bind"
        return [Finding("Slurm's GPUs", "fail", found, remedy)]
    return [Finding("Slurm's GPUs", "pass", found)]


def _slurm_time(job: str) -> list[Finding]:
    """The time until Slurm ends the job, where it has an end."""
    end = os.environ.get("SLURM_JOB_END_TIME") or _end_time(job)
    if not end.isdigit():
        return [Finding("Slurm's time", "pass", "no limit is known")]
    left = int(end) - time.time()
    found = f"{left / 60:.0f} minutes left"
    if left < LITTLE_TIME:
        remedy = "raise --time: a job is warned five minutes before its end"
        return [Finding("Slurm's time", "warn", found, remedy)]
    return [Finding("Slurm's time", "pass", found)]


def _end_time(job: str) -> str:
    """The end of a job in seconds since 1970, from Slurm, whose older versions do not set it."""
    command = ["scontrol", "-o", "show", "job", job]
    try:
        done = subprocess.run(  # noqa: S603 (our own words)
            command, capture_output=True, text=True, check=True, timeout=10
        )
        words = dict(word.split("=", 1) for word in done.stdout.split() if "=" in word)
        return str(int(time.mktime(time.strptime(words["EndTime"], "%Y-%m-%dT%H:%M:%S"))))
    except (OSError, subprocess.SubprocessError, KeyError, ValueError):  # none, or no limit
        return ""
