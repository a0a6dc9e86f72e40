"""What a search writes into its mixture file: the proposal where it improves, the base where it does not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from numpy.typing import NDArray

from ideal_proxy.amounts import Amount
from ideal_proxy.config import SearchConfig
from ideal_proxy.limits import Limits
from ideal_proxy.mixture import (
    CapabilityResult,
    DomainVolume,
    FreeAnswer,
    MetricResult,
    MixtureFile,
    drawn_tokens,
    with_shares,
)
from ideal_proxy.pipeline.laboratory import Laboratory
from ideal_proxy.pipeline.prepare import Prepared
from ideal_proxy.pipeline.proposal import Proposal
from ideal_proxy.pipeline.verdict import IMPROVES, Verdict
from ideal_proxy.store import read_json


def domain_volumes(prepared: Prepared, seed: int, rows: NDArray[Any]) -> list[DomainVolume]:
    """Give every domain's place in a mixture of so many rows, with the tokens that they really draw."""
    volumes = []
    for i, domain in enumerate(prepared.facts):
        tokens, supervised = drawn_tokens(seed, domain.name, prepared.domain_rows(i), int(rows[i]))
        volumes.append(
            DomainVolume(
                name=domain.name,
                source=domain.source,
                format=domain.format,
                fingerprint=domain.fingerprint,
                available=domain.available,
                left_out=list(domain.left_out),
                rows=int(rows[i]),
                tokens=tokens,
                supervised_tokens=supervised,
                base_rows=domain.base,
            )
        )
    return with_shares(volumes)


def mixture_of(
    laboratory: Laboratory, proposal: Proposal, verdict: Verdict, result: dict[str, Any], law: dict[str, Any]
) -> MixtureFile:
    """Compose the mixture file: the proposal where it improves, the base where it does not."""
    config, prepared, plan = laboratory.config, laboratory.prepared, laboratory.plan
    folder = laboratory.folder
    adopted = verdict.answer == IMPROVES
    provenance = read_json(folder / "provenance.json")
    return MixtureFile.of(
        config,
        domain_volumes(prepared, config.seed, proposal.rows if adopted else prepared.domains.base),
        capabilities=[
            CapabilityResult(
                name=capability.name,
                source=capability.source,
                format=capability.format,
                fingerprint=capability.fingerprint,
                base_loss=result["capabilities"][j]["base_loss"],
                **_losses(result["capabilities"][j], adopted=adopted),
                metric=_file_metric(result["capabilities"][j].get("metric"), adopted=adopted),
            )
            for j, capability in enumerate(prepared.capabilities)
        ],
        constraints_active=list(proposal.optimum.active),
        verdict=verdict.answer,
        verdict_text=result["verdict"]["sentence"],
        gain=verdict.gain.value,
        gain_lower=verdict.gain.lower,
        gain_upper=verdict.gain.upper,
        predicted_gain=proposal.predicted.gain.value,
        free=_free_answer(result["free"]),
        provenance={
            **provenance,
            "proposal_rows": {d["name"]: d["proposal_rows"] for d in result["domains"]},
            "tokens_per_row": dict(zip(prepared.domains.names, prepared.domains.lengths.tolist(), strict=True)),
            "proxy": {
                "size": config.proxy.size,
                "vocabulary": config.proxy.vocabulary,
                "context": prepared.context.tokens,
                "warm_fraction": config.proxy.warm_fraction,
                "batch_rows": config.batch.rows,
                "learning_rate": read_json(folder / "rate.json")["learning_rate"],
                "seed": config.seed,
                **_pretrained(config, prepared),
            },
            "objective": {
                "kind": config.objective.kind,
                "weights": {c.name: c.weight for c in config.capabilities}
                if config.objective.kind == "weighted"
                else None,
                "min_gain": config.objective.min_gain,
                "upper_confidence": config.objective.upper_confidence,
                "kl": config.constraints.kl,
            },
            "constraints": _limits(config, prepared).to_json(),
            **{key: result[key] for key in ("reuse", "ladder") if key in result},
        },
        law=law,
        proxy_fraction=plan.fraction,
        template=prepared.template,
    )


def _free_answer(found: dict[str, Any] | None) -> FreeAnswer | None:
    if found is None:
        return None
    gain = found["predicted_gain"]
    return FreeAnswer(
        rows=found["rows"], predicted_gain=gain["value"], predicted_lower=gain["lower"], predicted_upper=gain["upper"],
        predicted_changes={name: ratio["value"] - 1 for name, ratio in found["capabilities"].items()},
    )  # fmt: skip


def _limits(config: SearchConfig, prepared: Prepared) -> Limits:
    """Give the limits that a full-size run obeys too: bounds of domains where the run file sets them."""
    both = list(zip(prepared.facts, config.domains, strict=True))
    return replace(
        config.limits,
        lower={d.name: Amount(float(d.lower), "rows") for d, _ in both if d.lower > 0},
        upper={d.name: Amount(float(d.upper), "rows") for d, entry in both if entry.max is not None},
    )


def _pretrained(config: SearchConfig, prepared: Prepared) -> dict[str, Any]:
    """Say which model the proxies were; nothing for scratch proxies."""
    if config.proxy.model is None:
        return {}
    keys = ("model", "gguf", "revision", "trust_remote_code", "lora_rank")
    return {key: getattr(config.proxy, key) for key in keys} | {"weights": prepared.base_model["fingerprint"]}


def _file_metric(found: dict[str, Any] | None, *, adopted: bool) -> MetricResult | None:
    """Give what a metric gave for the volumes that the file holds; for the base nothing was predicted."""
    if found is None:
        return None
    known: dict[str, Any] = {
        key: found.get(key) for key in ("command", "python", "named", "higher_is_better", "scale", "noise")
    }
    if not adopted:
        return MetricResult(**known, base_score=found["base"])
    return MetricResult(
        **known,
        base_score=found["base"],
        score=found["proposal"],
        predicted_change=found["predicted"]["value"],
        verified_change=found["verified"]["value"],
        verified_lower=found["verified"]["lower"],
        verified_upper=found["verified"]["upper"],
    )


def _losses(entry: dict[str, Any], *, adopted: bool) -> dict[str, float]:
    """Give a capability's numbers for the volumes that the file holds; for the base nothing was predicted."""
    if not adopted:
        return {}
    base, predicted, verified = entry["base_loss"], entry["predicted"], entry["verified"]
    return {
        "predicted_loss": predicted["value"] * base,
        "predicted_lower": predicted["lower"] * base,
        "predicted_upper": predicted["upper"] * base,
        "verified_base_loss": base,
        "verified_loss": entry["proposal_loss"],
        "verified_gain": 1 - verified["value"],
        "verified_lower": 1 - verified["upper"],
        "verified_upper": 1 - verified["lower"],
    }
