"""One of two gloo processes: implicit responses in both precisions, and how many labels this process saw."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from tiny_llama import SETTINGS, VOLUMES, tiny_domains, tiny_llama, tiny_references

from ideal_proxy.data.tokens import IGNORED
from ideal_proxy.gradients import influence

out, RANK = Path(sys.argv[1]), int(os.environ["RANK"])
dist.init_process_group("gloo", init_method=f"file://{os.environ['STORE']}", rank=RANK, world_size=2)
seen = 0
original = influence.batch_loss


def counting(model, batch, *arguments, **options):
    global seen
    seen += int((batch.labels != IGNORED).sum())
    return original(model, batch, *arguments, **options)


influence.batch_loss = counting
for dtype in (torch.float64, torch.float32):
    result = influence.responses(tiny_llama(dtype), tiny_domains(), tiny_references(), VOLUMES, settings=SETTINGS)
    result.save(out / f"{dist.get_rank()}-{dtype}.npz")
counts = [None, None]
dist.all_gather_object(counts, seen)
if dist.get_rank() == 0:
    (out / "labels.json").write_text(json.dumps(counts))
dist.barrier()  # nobody leaves before all results lie on the disk
sys.stdout.flush()
sys.stderr.flush()
os._exit(0)  # gloo's and the store's threads may abort a process that takes them down; the kernel takes them down
