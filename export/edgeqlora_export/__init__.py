"""Export of speech models to ONNX bundles (workstation)."""
