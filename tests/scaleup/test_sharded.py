"""Two gloo processes on a CPU: FSDP2 and DDP train what one process trains."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import sharded_worker as worker
import torch
import yaml
from forked import Forked

from ideal_proxy import scaleup
from ideal_proxy.data.rows import read_rows, row_keys, source_fingerprint
from ideal_proxy.mixture.file import CapabilityResult, DomainVolume, MixtureFile, save_mixture
from ideal_proxy.proxy.model import build_proxy

HERE = Path(__file__).resolve().parents[1]
WORLD = 2


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    out = tmp_path_factory.mktemp("sharded")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent), "GLOO_SOCKET_IFNAME": "lo"}
    processes = [
        Forked(
            [sys.executable, "-m", "sharded_worker", str(rank), str(WORLD), str(out / "store"), str(out)],
            env=environment,
        )
        for rank in range(WORLD)
    ]
    assert [process.wait(600) for process in processes] == [0] * WORLD
    return [torch.load(out / f"rank{rank}.pt", weights_only=True) for rank in range(WORLD)]


@pytest.fixture(scope="module")
def alone() -> dict[str, tuple[list[float], dict[str, torch.Tensor]]]:
    done = {}
    for loss in ("token", "row"):
        model = build_proxy("0.1M", worker.VOCABULARY, 64, 0)
        losses = worker.train(model, model, worker.steps(0, 1, loss), 1, contextlib.nullcontext)
        done[loss] = losses, worker.whole(model)
    return done


@pytest.mark.parametrize("loss", ["token", "row"])
@pytest.mark.parametrize("kind", ["fsdp", "ddp"])
def test_two_processes_equal_one(found: list[dict], alone: dict, kind: str, loss: str) -> None:
    losses, weights = alone[loss]
    assert alone["row"][0] != pytest.approx(alone["token"][0], rel=1e-4)
    fresh = dict(build_proxy("0.1M", worker.VOCABULARY, 64, 0).named_parameters())
    assert len(losses) == 4
    together = [sum(part) / WORLD for part in zip(*(rank[f"{kind} {loss} losses"] for rank in found), strict=True)]
    assert together == pytest.approx(losses, rel=1e-5)
    moved = 0.0
    for name, expected in weights.items():
        for rank in found:
            torch.testing.assert_close(rank[f"{kind} {loss}"][name], expected, atol=1e-5, rtol=0, msg=f"{kind} {name}")
        moved = max(moved, (expected - fresh[name]).abs().max().item())
    assert moved > 1e-3, "training moved the weights by far more than the tolerance"


def test_processes_do_not_see_the_same_rows() -> None:
    parts = [worker.steps(rank, WORLD)[0] for rank in range(WORLD)]
    rows = [sum(len(batch.starts) - 1 for batch in part.batches if (batch.labels >= 0).any()) for part in parts]
    assert sum(rows) == worker.BATCH_ROWS
    assert len(parts[0].batches) == len(parts[1].batches) > 1
    labels = [sum(int((batch.labels >= 0).sum()) for batch in part.batches) for part in parts]
    assert sum(labels) == parts[0].normaliser == parts[1].normaliser


def test_shipped_configuration_is_what_accelerate_reads() -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    path = Path(scaleup.__file__).parent / "fsdp2.yaml"
    settings = yaml.safe_load(path.read_text())["fsdp_config"]
    assert settings["fsdp_version"] == 2
    config = load_config_from_file(str(path))
    assert config.distributed_type == "FSDP"
    assert config.fsdp_config["fsdp_state_dict_type"] == "FULL_STATE_DICT"
    from accelerate import FullyShardedDataParallelPlugin

    known = {name.removeprefix("fsdp_") for name in FullyShardedDataParallelPlugin.__dataclass_fields__}
    renamed = {"offload_params": "cpu_offload"}
    for key in settings:
        name = key.removeprefix("fsdp_")
        assert renamed.get(name, name) in known | {"version"}, key


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["token", "row"])
def test_the_launched_command_equals_one_process(tmp_path: Path, loss: str) -> None:
    """`accelerate launch -m ideal_proxy.cli scale-up`: one loss curve, one set of files, the same refined mixture."""
    domains = []
    for name, count in (("arithmetic", 60), ("strings", 50)):
        source = f"demo:{name}?seed=1&rows=80"
        found = source_fingerprint(row_keys(list(read_rows(source))))
        domains.append(
            DomainVolume(name=name, source=source, fingerprint=found, available=80, rows=count, base_rows=110 - count)
        )
    judged = [CapabilityResult(name="strings", source="demo:strings?seed=1&rows=30&split=reference")]
    proxy = {"size": "0.1M", "vocabulary": 320, "context": 48, "batch_rows": 16}
    save_mixture(
        tmp_path / "mixture.json",
        MixtureFile(seed=3, domains=domains, capabilities=judged, provenance={"proxy": proxy}),
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent)}
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_machines", "1", "--dynamo_backend", "no"]
    command = ["-m", "ideal_proxy.cli", "scale-up", str(tmp_path / "mixture.json"), "--model", "scratch:0.1M"]
    options = ["--device", "cpu", "--evaluations", "1", "--baseline", "--refine", "1", "--refine-rows", "20", "--quiet"]
    options += ["--loss", loss]
    # On a CPU accelerate starts several processes only by the launcher that it has for GPUs.
    for name, processes in (("one", ["--cpu"]), ("two", ["--multi_gpu", "--num_processes", "2"])):
        words = [*launch, *processes, "--mixed_precision", "no", *command, *options, "--out", str(tmp_path / name)]
        subprocess.run(words, env=environment, check=True, timeout=1800)
    for run in ("mixture-3", "base-3", "refined-1-3"):
        logs = [json.loads((tmp_path / name / "runs" / run / "log.json").read_text()) for name in ("one", "two")]
        assert [log["processes"] for log in logs] == [1, 2]
        assert logs[0]["rows"] == logs[1]["rows"]
        for alone, together in zip(logs[0]["curve"], logs[1]["curve"], strict=True):
            assert together == pytest.approx(alone, rel=1e-5)
    told = [
        json.loads((tmp_path / name / "result.json").read_text())["refine"]["iterations"] for name in ("one", "two")
    ]
    assert told[0][0]["gradients"]["scale"] == pytest.approx(told[1][0]["gradients"]["scale"], rel=1e-3)
    assert told[0][0]["rows"] == told[1][0]["rows"]
