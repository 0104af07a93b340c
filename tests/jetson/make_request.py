"""Make fixture_engine_request.json: python tests/jetson/make_request.py (with the workstation's environment)."""

from pathlib import Path

from edgeqlora_export.engine_request import engine_request
from edgeqlora_jetson.bundle import Bundle
from edgeqlora_jetson.files import write_json

HERE = Path(__file__).resolve().parent


def main() -> None:
    manifest = Bundle.load(HERE / "fixture_bundle").manifest
    request = engine_request(
        model=manifest["model"],
        windows_s=manifest["audio"]["windows_s"],
        n_prompt=len(manifest["decoding"]["prompt_ids"]),
        max_new_tokens=manifest["decoding"]["max_new_tokens"],
        max_batch=4,
        precisions=["fp16", "fp32"],
        tensorrt="8.2",
        workspace_mib=64,
    )
    write_json(HERE / "fixture_engine_request.json", request)


if __name__ == "__main__":
    main()
