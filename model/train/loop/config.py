from __future__ import annotations

from dataclasses import dataclass

NO_EVALUATION = 10**9  # a value of ``evaluate_every``: evaluate only after the last step


@dataclass(frozen=True)
class LoopConfig:
    num_steps: int
    num_warmup_steps: int = 200
    clip_grad_norm: float = 1.0
    evaluate_every: int = 1000
    save_every_seconds: float = 60.0
    log_every_seconds: float = 15.0
    bf16: bool = True
    """bfloat16 autocast. Weights and optimizer stay in float32."""
    num_accumulation_steps: int = 1
    """Micro-batches per process and step."""
    ema_decay: float = 0.0
    """Decay of the moving average of the weights, which is evaluated and is the result; 0: no average."""
    patience: int = 0
    """Evaluations without improvement after which the stage ends with its best weights. 0: the stage runs all steps
    and ends with its last weights."""
