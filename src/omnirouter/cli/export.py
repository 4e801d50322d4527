"""`omnirouter export`: a checkpoint as ONNX."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from omnirouter.cli import console
from omnirouter.cli.options import DONE, require_writable
from omnirouter.config import BadInput
from omnirouter.pretrained import resolve_model


def export(checkpoint: str, *, output_dir: Path, json: bool = False) -> int:
    """Write a checkpoint as ONNX, in float32 and int8, for use without torch.

    The features are part of the graph: samples in, log-probabilities out. Both graphs are compared
    with the checkpoint on noise of several lengths.

    Examples:
        omnirouter export english-small --output-dir exported

    Args:
        checkpoint: folder of the model, such as best/ of a run; english-small; or org/name on the
            Hugging Face Hub.
        output_dir: folder to write; an earlier export in it is replaced.
        json: print a JSON object: fp32 and int8, each to max_difference (of log-probabilities),
            same_piece (share of frames with the same most probable piece), megabytes.
    """
    if output_dir.resolve() == resolve_model(checkpoint).resolve():
        raise BadInput("output-dir: is the checkpoint itself; choose another folder")
    require_writable(output_dir.parent / "export")
    from omnirouter.checkpoint import load_checkpoint
    from omnirouter.serve.export import export as write_export

    found = write_export(load_checkpoint(checkpoint), output_dir, note=console.note)
    if json:
        console.as_json({name: asdict(parity) for name, parity in found.items()})
        return DONE
    rows = [
        [name, f"{p.max_difference:.2g}", f"{p.same_piece:.1%}", f"{p.megabytes:.1f} MB"]
        for name, p in found.items()
    ]
    console.table(("graph", "largest difference", "same piece", "size"), {"": rows})
    print(f"next: omnirouter transcribe AUDIO --model {output_dir}")
    return DONE
