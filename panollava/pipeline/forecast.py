"""What a stage is going to take, told before its first step."""

from __future__ import annotations

from panollava.assemble.stage import AnyStage
from panollava.logs import LOG


def forecast(name: str, stage: AnyStage) -> None:
    """Logs how much of the model trains."""
    total = sum(p.numel() for p in stage.parameters())
    share = sum(p.numel() for p in stage.trained().values())
    LOG.info("Stage %s trains %s of %s parameters (%.2f %%).", name, f"{share:,}", f"{total:,}", 100 * share / total)
