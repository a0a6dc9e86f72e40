"""What trains proxies of its own instead of reading the table of runs; `real.py online` calls this.

DoReMi and DoGE re-weigh domains while one proxy is trained (steps take as many rows of each domain, so that every
domain has a loss and a gradient at every step), IDEAL's rule moves by gradients, OP-Mix interpolates weights. The rest
is `benchmarks/peers/doremi.py`, `doge.py`, `ideal_rule.py` and `op_mix.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

ROWS_A_STEP = 36  # of all domains together


class Stepper:
    """A proxy that is trained on a weighted sum of its domains' losses, a few rows of each at every step."""

    def __init__(self, problem: Any, seed: int) -> None:
        from ideal_proxy.proxy.records import learning_rates
        from ideal_proxy.proxy.training import adamw

        self.problem, self.rows = problem, list(problem.domains.values())
        self.rng = np.random.default_rng([seed, 41])
        problem.base_model(seed)  # so that the warm start is there
        self.model = problem.start()
        self.model.train()
        self.optimizer = adamw(self.model, problem.settings)
        self.steps = max(1, round(float(problem.base.sum()) / ROWS_A_STEP))
        self.rates = learning_rates(problem.settings, self.steps)
        self.each = max(1, round(ROWS_A_STEP / len(self.rows)))

    def batches(self, rows: list) -> list:
        from ideal_proxy.proxy.model import collate_across

        return [
            collate_across([part], np.zeros(self.each, dtype=np.int64), self.rng.integers(0, len(part), self.each))
            for part in rows
        ]

    def loss(self, model: Any, batch: Any) -> Any:
        from ideal_proxy.proxy.model import batch_loss, normaliser

        return batch_loss(model, batch, 1.0 / normaliser([batch], "token"))

    def gradient(self, batch: Any) -> Any:
        import torch

        weights = [p for p in self.model.parameters() if p.requires_grad]
        return torch.cat([g.flatten() for g in torch.autograd.grad(self.loss(self.model, batch), weights)])

    def apply(self, number: int) -> None:
        import torch

        for group in self.optimizer.param_groups:
            group["lr"] = float(self.rates[number])
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.problem.settings.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def doremi(problem: Any, seed: int = 1) -> np.ndarray:
    """Shares by group DRO; its cost is two trainings: the reference model on base, and the proxy."""
    import torch
    from peers import doremi as rule

    reference, here = problem.base_model(seed).eval(), Stepper(problem, seed)

    def excess(number: int, alpha: np.ndarray) -> np.ndarray:
        told = []
        for share, batch in zip(alpha, here.batches(here.rows), strict=True):
            loss = here.loss(here.model, batch)
            (float(share) * loss).backward()
            with torch.no_grad():
                told.append(float(loss) - float(here.loss(reference, batch)))
        here.apply(number)
        return np.array(told)

    return rule.weights(len(here.rows), here.steps, excess)


def doge(problem: Any, seed: int = 1) -> np.ndarray:
    """Shares by agreement of gradients with the reference rows' (out-of-domain variant); about two trainings."""
    from peers import doge as rule

    here, wanted = Stepper(problem, seed), list(problem.references.values())

    def agreement(number: int, alpha: np.ndarray) -> np.ndarray:
        goal = sum(here.gradient(batch) for batch in here.batches(wanted)) / len(wanted)
        told, weighted = [], None
        for share, batch in zip(alpha, here.batches(here.rows), strict=True):
            gradient = here.gradient(batch)
            told.append(float(gradient @ goal))
            weighted = gradient * float(share) + (0.0 if weighted is None else weighted)
        place = 0
        for weight in (p for p in here.model.parameters() if p.requires_grad):
            weight.grad = weighted[place : place + weight.numel()].view_as(weight).clone()
            place += weight.numel()
        here.apply(number)
        return np.array(told)

    return rule.weights(len(here.rows), here.rates, agreement)


def ideal_rule(setting: Any, seed: int = 1) -> np.ndarray:
    """IDEAL's rule in two rounds, with responses by our EK-FAC at the mixture trained last; four trainings' price."""
    from peers import ideal_rule as rule
    from peers.task import Task

    from ideal_proxy.gradients.influence import InfluenceSettings, mixture_factors, responses
    from ideal_proxy.proxy.training import load_weights
    from ideal_proxy.swarm.context import MODEL, draw_run

    problem = setting.problem

    def responses_at(volumes: np.ndarray) -> np.ndarray:
        rows = setting.rows(volumes)
        problem.losses([(rows, seed)])
        spec, model = problem.spec(rows, seed), problem.start()
        load_weights(model, problem.run_dir / "runs" / spec.id / MODEL)
        domain, row = draw_run(problem.context, list(problem.domains.values()), spec)
        drawn = {
            name: rows.select(np.unique(row[domain == d])) for d, (name, rows) in enumerate(problem.domains.items())
        }
        settings = InfluenceSettings().within(1.5, int(rows.sum()), len(drawn) + len(problem.references))
        factors, _ = mixture_factors(model, drawn, rows, settings)
        found = responses(model, drawn, problem.references, rows, operator=factors.inverse(0.01), settings=settings)
        return found.M

    task: Task = setting.task
    return rule.search(task, responses_at)


def op_mix(setting: Any, seed: int = 1) -> np.ndarray:
    """OP-Mix with whole weights in place of adapters: proxies this small are trained in full."""
    from peers import op_mix as rule

    from ideal_proxy.proxy.blend import blend_weights
    from ideal_proxy.proxy.model import evaluate
    from ideal_proxy.swarm.context import MODEL

    problem = setting.problem

    def imitate(pair: np.ndarray, weights: np.ndarray) -> np.ndarray:
        rows = [setting.rows(volumes) for volumes in pair]
        problem.losses([(part, seed) for part in rows])
        kept = [problem.run_dir / "runs" / problem.spec(part, seed).id / MODEL for part in rows]
        model = problem.start()
        blend_weights(model, [(path, float(w)) for path, w in zip(kept, weights, strict=True) if w > 0])
        return np.array([evaluate(model, part).mean for part in problem.references.values()])

    return rule.search(setting.task, imitate)


def responses_at_base(problem: Any, seeds: tuple[int, ...] = (1, 2)) -> dict[str, Any]:
    """Gradients through the inverse Hessian (EK-FAC) at base, the mean over two proxies, as the fit takes them."""
    from truth import mean_of

    from ideal_proxy.gradients.influence import InfluenceSettings

    settings = InfluenceSettings().within(1.5, int(problem.base.sum()), len(problem.names) + len(problem.references))
    method = "implicit ekfac 0.01"
    parts = [problem.estimates(seed, settings, (method,))[method] for seed in seeds]
    matrix, error, tokens = mean_of(parts)
    return {
        "matrix": matrix.tolist(), "error": error.tolist(), "share": np.asarray(parts[0].q).tolist(),
        "cost_in_runs": len(seeds) * tokens / problem.training_tokens(),
    }  # fmt: skip
