"""What stands at the end of every command's help: commands to copy, which a test parses."""

from collections.abc import Mapping
from typing import Final

EXAMPLES: Final[Mapping[str, tuple[str, ...]]] = {
    "demo": ("demo", "demo --model llava", "demo --trials 20 --out /tmp/demo"),
    "init": (
        "init pets.yaml",
        "init pets.yaml --model ViT-B-32 --weights laion2b_s34b_b79k --data pets/images "
        "--max-nbytes 60MB",
        "init llava.yaml --model llava-hf/llava-1.5-7b-hf --data vqa/questions.jsonl",
    ),
    "validate": ("validate pets.yaml", "validate pets.yaml --trust"),
    "submit": (
        "submit pets.yaml --dry-run",
        "submit pets.yaml --workers 4",
        "submit pets.yaml --address http://head:8265 --warm-start pets-small",
    ),
    "resume": ("resume pets", "resume pets --trials 400"),
    "profile": ("profile pets.yaml", "profile pets.yaml --workers 4"),
    "pause": ("pause pets", "pause pets --db results.db"),
    "stop": ("stop pets", "stop pets --db postgresql://ann@host/bitfront"),
    "cancel": ("cancel pets", "cancel pets --db results.db"),
    "delete": ("delete pets", "delete pets --yes"),
    "list": ("list", "list --format json"),
    "status": ("status pets", "status pets --format json"),
    "watch": ("watch pets", "watch pets --db postgresql://ann@host/bitfront"),
    "logs": ("logs pets --follow", "logs pets --trial 7", "logs pets --format json"),
    "front": (
        "front pets",
        "front pets --max-nbytes 40MB --max-bits 4",
        "front --model ViT-B-32 --format csv --out front.csv",
    ),
    "best": (
        "best pets --max-nbytes 40MB",
        "best pets --max-error 15% --format json",
        "best --model ViT-B-32 --max-nbytes 40MB",
    ),
    "show": ("show pets 38", "show pets 38 --format json"),
    "compare": ("compare pets pets-w4a8", "compare pets pets-w4a8 --format json"),
    "plot": ("plot pets", "plot pets --trial 38 --out pictures"),
    "export": ("export pets > pets.csv", "export pets --out pets.parquet"),
    "export-optuna": ("export-optuna pets optuna.db", "export-optuna pets optuna.db --db a.db"),
    "export-mlflow": (
        "export-mlflow pets http://127.0.0.1:5000",
        "export-mlflow pets sqlite:////home/ann/mlflow.db",
    ),
    "tune": (
        "tune pets --max-nbytes 40MB --steps 400 --out tuned",
        "tune pets --trial 38 --samples 32 --out tuned",
        "tune --job pets.yaml --plan w4a8 --out tuned",
    ),
    "classify": (
        "classify cat.jpg --study pets --max-nbytes 40MB",
        "classify a.jpg b.jpg --tuned tuned --top 5",
    ),
    "ask": (
        'ask photo.jpg "what is on the table?" --study llava --max-nbytes 6GB',
        'ask photo.jpg "how many cats?" --study llava --trial 12',
    ),
    "build": (
        "build pets --max-nbytes 40MB --out model",
        "build pets --trial 38 --to onnx --out exported",
    ),
    "artefacts": ("artefacts pets", "artefacts pets --format json"),
    "targets": ("targets", "targets --format json"),
    "methods": ("methods", "methods --format json"),
    "models": ("models", "models --format json"),
    "schema": ("schema > job.schema.json", "schema --path"),
    "doctor": ("doctor", "doctor --address http://head:8265", "doctor --format json"),
    "completion": (
        "completion bash > ~/.local/share/bash-completion/completions/bitfront",
        "completion zsh > ~/.zfunc/_bitfront",
        "completion fish > ~/.config/fish/completions/bitfront.fish",
    ),
    "serve": ("serve", "serve --port 8080 --db results.db"),
}
"""Two or three examples of each command, without the word `bitfront` in front."""


def epilog(command: str) -> str:
    """The examples as the end of a command's help, in lines that click does not wrap."""
    lines = "\n".join(f"  bitfront {example}" for example in EXAMPLES.get(command, ()))
    return f"\b\nExamples:\n{lines}" if lines else ""
