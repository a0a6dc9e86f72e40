"""A swarm on a real Ray cluster of two nodes on this machine's loopback; `test_swarm_ray.py` runs it as a process.

Usage: ray_swarm.py FOLDER SCENARIO WORKER [ADDRESS]. Writes FOLDER/report.json. The cluster is this process's own and
ends with it. The nodes are 127.0.0.2 and 127.0.0.3, for Ray takes 127.0.0.1 for the machine's outer address.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from builders import SPECS, gone, make_context, spec

from ideal_proxy.swarm.pool import Message
from ideal_proxy.swarm.ray_pool import RayPool
from ideal_proxy.swarm.scheduler import Swarm, SwarmEvent, SwarmOutcome, warm_spec

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

COUNT, TRAIN, GRADIENTS = "counting_worker", "ideal_proxy.swarm.worker", "ideal_proxy.gradients.worker"
SECONDS = 0.04  # of a counted step
RUNS = {
    COUNT: [
        spec("long-a", (120, 0), learning_rate=SECONDS), spec("long-b", (0, 120), learning_rate=SECONDS),
        *(spec(f"short-{n}", (4 + n, 3), seed=n, learning_rate=SECONDS) for n in range(6)),
    ],
    TRAIN: [spec("long-a", (4000, 0)), spec("long-b", (0, 4000)), *SPECS],
    GRADIENTS: [
        spec("base", (80, 80), save_model=True),
        spec("implicit", (80, 80), role="gradients", responses="implicit", trained="base"),
    ],
}  # fmt: skip
NODE = {"num_cpus": 1, "object_store_memory": 80 << 20}
AGENT_PORTS = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port", "runtime_env_agent_port")
"""Given, for a raylet ends itself where its agents, which choose their own otherwise, do not tell them soon."""


def main() -> None:
    import ray

    folder, scenario, worker, *address = Path(sys.argv[1]), *sys.argv[2:]
    report: dict[str, Any] = {}
    if address:
        drive(folder, worker, address[0], tell)
        return
    cluster, second = two_nodes(report)
    try:
        SCENARIOS[scenario](folder, worker, cluster, second, report)
    finally:
        report["left"] = sorted(path.name for path in Path(os.environ["IDEAL_PROXY_CACHE"]).iterdir())
        (folder / "report.json").write_text(json.dumps(report))
        ray.shutdown()
        cluster.shutdown()


def two_nodes(report: dict[str, Any], tries: int = 4) -> tuple[Cluster, Any]:
    """Start a cluster; Ray ends a head that is not up in time, which on a full machine is no fault of ours."""
    import ray
    from ray.cluster_utils import Cluster

    for report["tries"] in range(1, tries + 1):
        cluster = Cluster()
        try:
            return cluster, two_nodes_of(cluster)
        except Exception as error:
            sys.stdout.write(f"try {report['tries']}: {type(error).__name__} {error}\n")
            with contextlib.suppress(Exception):
                ray.shutdown()
                cluster.shutdown()
            if report["tries"] == tries:
                raise
            time.sleep(10)
    raise AssertionError


def two_nodes_of(cluster: Cluster) -> Any:
    """Add the head and another node, and give that one."""
    ports = free_ports(2 * len(AGENT_PORTS))
    head, other = (
        {**NODE, "node_ip_address": address, **dict(zip(AGENT_PORTS, own, strict=True))}
        for address, own in (("127.0.0.2", ports[::2]), ("127.0.0.3", ports[1::2]))
    )
    spared = {"include_dashboard": False, "include_log_monitor": False, "no_monitor": True}  # processes of no use here
    cluster.add_node(**head, **spared)
    return cluster.add_node(**other)


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in held]


class WatchedPool(RayPool):
    """Remembers where workers are and how often the context was unpacked.

    Where `together` is set, it gives no run out before every node has a ready worker, so that each gets a long run.
    """

    together = False

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.nodes: dict[int, str] = {}
        self.unpacked: Counter[str] = Counter()

    def _take(self, actor: Any, message: Message) -> Message:
        if message["kind"] == "placed":
            self.nodes[actor.number] = message["node"]
            self.unpacked[message["node"]] += message["unpacked"]
        return super()._take(actor, message)

    def idle(self) -> list[int]:
        ready = super().idle()
        self.together = self.together and len(ready) < self.workers
        return [] if self.together else ready


def drive(
    folder: Path, worker: str, address: str, on_event: Callable[[SwarmEvent, WatchedPool], None]
) -> tuple[SwarmOutcome, WatchedPool]:
    """Do the runs on the cluster."""
    context = make_context(folder / "context")
    pool = WatchedPool(context, folder, address=address, worker=worker)
    with Swarm(context, folder, pool=pool, checkpoint_seconds=0.0) as swarm:
        assert not swarm.run([warm_spec(context, 0)]).failures
        pool.together = True
        return swarm.run(RUNS[worker], on_event=lambda event: on_event(event, pool)), pool


def tell(event: SwarmEvent, pool: WatchedPool) -> None:
    sys.stdout.write(f"{event.kind} {event.run} {event.done} {event.pid}\n")
    sys.stdout.flush()


def losses(folder: Path, worker: str, cluster: Cluster, second: Any, report: dict[str, Any]) -> None:
    """The head's worker process is killed in mid-run, then the other node is taken away in mid-run.

    Counted runs wait in their middle until both has happened, so that no slow machine can miss it.
    """
    events: list[SwarmEvent] = []

    def on_event(event: SwarmEvent, pool: WatchedPool) -> None:
        events.append(event)
        if event.kind != "step" or not 3 <= event.done < event.steps - 3:
            return
        elsewhere = pool.nodes[event.worker] == second.node_id
        if "killed" not in report and not elsewhere:
            report["killed"], report["killed_at"] = event.run, event.done
            os.kill(event.pid, signal.SIGKILL)
        elif "killed" in report and "removed" not in report and elsewhere:
            report["removed"] = event.run
            cluster.remove_node(second, allow_graceful=False)
            (folder / "gate").touch()

    outcome, pool = drive(folder, worker, cluster.address, on_event)
    report |= {
        "workers": pool.workers, "unpacked": list(pool.unpacked.values()), "failures": outcome.failures,
        "results": list(outcome.results), "events": [asdict(event) for event in events],
    }  # fmt: skip


def stops(folder: Path, worker: str, cluster: Cluster, second: Any, report: dict[str, Any]) -> None:
    """Ctrl-C in mid-run; then a driver that is killed; then one that ends it."""

    def interrupt(event: SwarmEvent, pool: WatchedPool) -> None:
        if event.kind == "step" and event.done >= 3:
            report["stopped"], report["stopped_at"] = event.run, event.done
            raise KeyboardInterrupt

    import ray

    with contextlib.suppress(KeyboardInterrupt):
        drive(folder, worker, cluster.address, interrupt)
    report["checkpoint"] = (folder / "runs" / report["stopped"] / "checkpoint.safetensors").is_file()
    report["left_by_stop"] = sorted(path.name for path in Path(os.environ["IDEAL_PROXY_CACHE"]).iterdir())
    ray.shutdown()
    command = [sys.executable, __file__, str(folder), "drive", worker, cluster.address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        for line in driver.stdout:
            kind, _, done, pid = line.split()
            if kind == "step" and int(done) >= 6:
                driver.kill()
                break
    report["orphan_ended"] = ended(int(pid))
    outcome, _ = drive(folder, worker, cluster.address, lambda event, pool: None)
    report["failures"], report["results"] = outcome.failures, list(outcome.results)


def ended(pid: int, seconds: float = 60.0) -> bool:
    """Wait for a process to go."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if gone(pid):
            return True
        time.sleep(0.1)
    return False


def plain(folder: Path, worker: str, cluster: Cluster, second: Any, report: dict[str, Any]) -> None:
    """Nothing goes wrong; the runs are done one after another, for each may start from the one before."""
    context = make_context(folder / "context")
    pool = RayPool(context, folder, address=cluster.address, worker=worker)
    with Swarm(context, folder, pool=pool) as swarm:
        report["failures"] = [swarm.run([run]).failures for run in (warm_spec(context, 0), *RUNS[worker])]
    report["failures"] = [failures for failures in report["failures"] if failures]


SCENARIOS = {"losses": losses, "stops": stops, "plain": plain}


if __name__ == "__main__":
    main()
